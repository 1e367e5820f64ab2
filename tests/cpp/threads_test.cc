// Every operation in every type gives the bits of a call on one thread when called from many threads at once, inside an
// application's parallel region, and in forked children. Under ThreadSanitizer (.ci/tsan) the test looks for races.
#include <atomic>
#include <mutex>
#include <thread>

#include "base/parallel.h"
#include "fork.h"
#include "headwise/softmax.h"
#include "works.h"

namespace headwise::testing {
namespace {

constexpr int kThreads = 4;

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
// The result of `function` in a forked child.
template <class Function>
int ExitCodeOfChild(const Function& function) {
  const pid_t child = ForkWithLimit();
  if (child == 0) _exit(function());
  return ExitCode(child);
}

// This thread has an OpenMP team, whose threads do not exist in the child.
TEST(ForkTest, AfterAParallelRegionOfTheApplication) {
  HEADWISE_SKIP_FORK();
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
