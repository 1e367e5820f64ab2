// Every operation in every type gives the bits of a call on one thread when called from many threads at once, inside an
// application's parallel region, and in forked children. Under ThreadSanitizer (.ci/tsan) the test looks for races.
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "attention_case.h"
#include "base/parallel.h"
#include "headwise/alibi.h"
#include "headwise/attention.h"
#include "headwise/layer_norm.h"
#include "headwise/linear.h"
#include "headwise/rope.h"
#include "headwise/softmax.h"

#ifdef _OPENMP
#include <sys/wait.h>

#include <csignal>
#endif

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HEADWISE_TSAN
#endif
#endif

namespace headwise::testing {
namespace {

constexpr int kThreads = 4;

using Bytes = std::vector<char>;

template <typename T, int kRank>
void Append(const Tensor<T, kRank>& tensor, Bytes& bytes) {
  const std::vector<T> values = tensor.Values();
  const char* const begin = reinterpret_cast<const char*>(values.data());
  bytes.insert(bytes.end(), begin, begin + values.size() * sizeof(T));
}

struct Work {
  std::string name;
  std::function<Bytes()> run;  // writes its own memory, reads inputs that all callers share
};

template <typename T, int kRank>
std::shared_ptr<Tensor<T, kRank>> Normal(std::array<std::int64_t, kRank> shape) {
  auto tensor = std::make_shared<Tensor<T, kRank>>(shape);
  Random random(static_cast<std::uint64_t>(tensor->Size()));
  FillNormal(*tensor, random);
  return tensor;
}

template <typename T>
using Normalizer = void (*)(View<const T, 3>, View<T, 3>);

template <typename T>
void AddSoftmax(std::vector<Work>& works) {
  // Rows, a few long rows that are split into parts, and columns.
  for (const std::array<std::int64_t, 3> shape :
       {std::array<std::int64_t, 3>{101, 1000, 1}, {2, 70'000, 1}, {4, 20, 1500}}) {
    const auto x = Normal<T, 3>(shape);
    for (const Normalizer<T> normalizer : {Normalizer<T>(&Softmax), Normalizer<T>(&LogSoftmax)}) {
      works.push_back({"softmax", [x, shape, normalizer] {
                         const Tensor<T, 3> out(shape);
                         normalizer(x->read(), out.view());
                         Bytes bytes;
                         Append(out, bytes);
                         return bytes;
                       }});
    }
    works.push_back({"log-sum-exp", [x, shape] {
                       const Tensor<T, 2> out({shape[0], shape[2]});
                       LogSumExp(x->read(), out.view());
                       Bytes bytes;
                       Append(out, bytes);
                       return bytes;
                     }});
  }
}

template <typename T>
void AddRowOperations(std::vector<Work>& works) {
  using A = Accumulator<T>;
  const auto scores = Normal<T, 4>({1, 4, 260, 1000});
  const auto numbers = Normal<A, 1>({1000});
  works.push_back({"alibi", [=] {
                     const Tensor<T, 4> out(scores->view().shape);
                     AddAlibi(scores->read(), numbers->data(), 7, out.view());
                     Bytes bytes;
                     Append(out, bytes);
                     return bytes;
                   }});
  const auto rows = Normal<T, 2>({301, 1000});
  const auto factors = Normal<T, 1>({1000});
  works.push_back({"layer norm", [=] {
                     const Tensor<T, 2> out(rows->view().shape);
                     LayerNorm(rows->read(), factors->data(), factors->data(), 1e-5, out.view());
                     Bytes bytes;
                     Append(out, bytes);
                     return bytes;
                   }});
  const auto x = Normal<T, 4>({2, 8, 700, 64});
  const auto cos = Normal<A, 4>({2, 8, 700, 32}), sin = cos;
  for (const bool interleaved : {false, true}) {
    works.push_back({"rope", [=] {
                       const Tensor<T, 4> out(x->view().shape);
                       ApplyRope(x->read(), cos->read(), sin->read(), interleaved, out.view());
                       Bytes bytes;
                       Append(out, bytes);
                       return bytes;
                     }});
  }
}

template <typename T>
void AddLinear(std::vector<Work>& works) {
  const auto weight = Normal<T, 2>({320, 1100});
  const auto bias = Normal<Accumulator<T>, 1>({1100});
  const auto packed = std::make_shared<PackedLinear<T>>(weight->read(), bias->data());
  for (const std::int64_t rows : {1, 9, 100}) {
    const auto x = Normal<T, 2>({rows, 320});
    const auto add = [&](const char* name, const std::function<void(View<T, 2>)>& run) {
      works.push_back({name, [rows, run] {
                         const Tensor<T, 2> out({rows, 1100});
                         run(out.view());
                         Bytes bytes;
                         Append(out, bytes);
                         return bytes;
                       }});
    };
    add("linear", [=](View<T, 2> out) { Linear(x->read(), weight->read(), bias->data(), out); });
    add("packed linear", [=](View<T, 2> out) { (*packed)(x->read(), out); });
    add("packing", [=](View<T, 2> out) { PackedLinear<T>(weight->read(), bias->data())(x->read(), out); });
  }
}

template <typename T>
void AddAttention(std::vector<Work>& works) {
  std::vector<std::shared_ptr<AttentionCase<T>>> cases;
  // Blocks of queries; few queries with split-KV, combined by the last thread; and an empty call.
  constexpr std::int64_t kLengths[][2] = {{150, 300}, {1, 2500}, {3, 1100}, {1, 5000},
                                          {0, 7},     {2, 0},    {5, 5},    {40, 90}};
  for (const auto& [query_len, key_len] : kLengths) {
    AttentionShape shape;
    shape.kv_heads = 2, shape.group = 2, shape.head_dim = 64, shape.value_dim = 40;
    shape.query_len = query_len, shape.key_len = key_len;
    cases.push_back(std::make_shared<AttentionCase<T>>(shape, cases.size()));
  }
  cases.back()->AddSinks();
  struct Results {
    explicit Results(const AttentionCase<T>& test)
        : output(test.output.view().shape), weights(test.weights.view().shape), lse(test.lse.view().shape) {
      weights.ForEach([](auto& weight) { weight = {}; });  // not every call writes them
    }
    AttentionArgs<T> Into(AttentionArgs<T> args, bool with_weights) const {
      args.output = output.view(), args.lse = lse.view();
      if (with_weights) args.weights = weights.view();
      return args;
    }
    void AppendTo(Bytes& bytes) const { Append(output, bytes), Append(lse, bytes), Append(weights, bytes); }
    const Tensor<T, 4> output, weights;
    const Tensor<Accumulator<T>, 3> lse;
  };
  for (const auto& test : cases) {
    if (test->output.Size() == 0) continue;
    for (const bool with_weights : {false, true}) {
      works.push_back({"attention", [test, with_weights] {
                         const Results results(*test);
                         Attention(results.Into(test->args, with_weights));
                         Bytes bytes;
                         results.AppendTo(bytes);
                         return bytes;
                       }});
    }
  }
  works.push_back({"packed sequences", [cases] {
                     std::vector<Results> results;
                     std::vector<AttentionArgs<T>> calls;
                     for (const auto& test : cases)
                       calls.push_back(results.emplace_back(*test).Into(test->args, false));
                     AttentionVarlen(calls);
                     Bytes bytes;
                     for (const Results& result : results) result.AppendTo(bytes);
                     return bytes;
                   }});
}

template <typename T>
std::vector<Work> Works() {
  std::vector<Work> works;
  AddSoftmax<T>(works);
  AddRowOperations<T>(works);
  AddLinear<T>(works);
  AddAttention<T>(works);
  return works;
}

// Runs all operations in every caller, each in another order. Returns the names of those whose bits differed.
class Callers {
 public:
  explicit Callers(const std::vector<Work>& works) : works_(works) {
    SetNumThreads(1);
    for (const Work& work : works) expected_.push_back(work.run());
    SetNumThreads(kThreads);
  }

  void Call(std::size_t caller) {
    for (std::size_t i = 0; i < works_.size(); ++i) {
      const std::size_t at = (i + caller * works_.size() / kThreads) % works_.size();
      if (works_[at].run() == expected_[at]) continue;
      const std::lock_guard<std::mutex> lock(mutex_);
      wrong_ += works_[at].name + " ";
    }
  }

  const std::string& wrong() const { return wrong_; }

 private:
  const std::vector<Work>& works_;
  std::vector<Bytes> expected_;
  std::mutex mutex_;
  std::string wrong_;
};

#ifdef _OPENMP
// The result of `child` in a forked child with a time limit.
template <class Function>
int ExitCodeOfChild(const Function& child) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(60);
    _exit(child());
  }
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

// This thread has an OpenMP team, whose threads do not exist in the child.
TEST(ForkTest, AfterAParallelRegionOfTheApplication) {
#ifdef HEADWISE_TSAN
  GTEST_SKIP() << "ThreadSanitizer ends a child of several threads that starts another";
#endif
  SetNumThreads(kThreads);
  std::atomic<int> teams{0};
#pragma omp parallel num_threads(kThreads)
  ++teams;
  EXPECT_EQ(teams, kThreads);
  const Tensor<float, 3> x({301, 1000, 1}), out(x.view().shape), again(x.view().shape);
  Random random(1);
  FillNormal(x, random);
  const auto compute = [&](const Tensor<float, 3>& to) { Softmax(x.read(), to.view()); };
  const int code = ExitCodeOfChild([&] {
    const int threads = ThreadsFor(1000, 1e9);
    std::vector<std::atomic<int>> runs(1000);
    ParallelFor(1000, threads, [&](std::int64_t task, int) { ++runs[static_cast<std::size_t>(task)]; });
    for (const auto& n : runs) {
      if (n != 1) return 1;
    }
    compute(out);
    // A grandchild, of a child that has workers.
    const int of_grandchild = ExitCodeOfChild([&] {
      compute(again);
      return ThreadsFor(1000, 1e9) == kThreads && Identical(again.Values(), out.Values()) ? 0 : 1;
    });
    if (of_grandchild != 0) return 2;
    bool same_elsewhere = false;
    std::thread([&] { compute(again), same_elsewhere = bool(Identical(again.Values(), out.Values())); }).join();
    if (!same_elsewhere) return 3;
    return threads;
  });
  EXPECT_EQ(code, kThreads) << "1000 and more: the child was killed, because it hung";
  EXPECT_EQ(ThreadsFor(1000, 1e9), kThreads);
}
#endif

class ConcurrentTest : public OnTarget {};

template <typename T>
void CheckFromManyThreads() {
  const std::vector<Work> works = Works<T>();
  Callers callers(works);
  std::vector<std::thread> threads;
  std::atomic<int> running{kThreads};
  for (std::size_t i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { callers.Call(i), --running; });
  // The number of threads changes meanwhile.
  for (int n = 0; running > 0; ++n) {
    SetNumThreads(1 + n % (2 * kThreads));
    std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(callers.wrong(), "");
}
TEST_P(ConcurrentTest, FromManyThreads) {
  CheckFromManyThreads<Float16>();
  CheckFromManyThreads<BFloat16>();
  CheckFromManyThreads<float>();
  CheckFromManyThreads<double>();
}

#ifdef _OPENMP
template <typename T>
void CheckInsideARegion() {
  const std::vector<Work> works = Works<T>();
  Callers callers(works);
  int callers_there = 0;
#pragma omp parallel for num_threads(kThreads) schedule(static, 1) reduction(+ : callers_there)
  for (int i = 0; i < kThreads; ++i) callers.Call(static_cast<std::size_t>(i)), ++callers_there;
  EXPECT_EQ(callers_there, kThreads);
  EXPECT_EQ(callers.wrong(), "");
}
TEST_P(ConcurrentTest, InsideAParallelRegionOfTheApplication) {
  CheckInsideARegion<BFloat16>();
  CheckInsideARegion<float>();
}
#endif

HEADWISE_ON_EVERY_TARGET(ConcurrentTest);

}  // namespace
}  // namespace headwise::testing
