// Out of memory: if any allocation of an operation fails, the operation throws std::bad_alloc, leaks nothing, leaves
// its output alone, and the next call succeeds. Sizes that no memory can hold throw as well.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "attention_backward_case.h"
#include "attention_case.h"
#include "base/scratch.h"
#include "headwise/activation.h"
#include "headwise/alibi.h"
#include "headwise/attention_backward.h"
#include "headwise/layer_norm.h"
#include "headwise/linear.h"
#include "headwise/rope.h"
#include "headwise/softmax.h"
#include "support.h"

namespace {

std::atomic<std::int64_t> live{0};           // allocations that have not been freed
std::atomic<std::int64_t> until_failure{0};  // index of the allocation that fails, counted from 1; 0 or less: none

void* Counted(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  ++live;
  return memory;
}

void FailIfDue() {
  if (until_failure.load() > 0 && until_failure.fetch_sub(1) == 1) throw std::bad_alloc();
}

void Release(void* memory) {
  if (memory != nullptr) --live;
  std::free(memory);
}

}  // namespace

// The array and nothrow forms call these.
void* operator new(std::size_t size) {
  FailIfDue();
  return Counted(std::malloc(std::max<std::size_t>(1, size)));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  FailIfDue();
  const auto align = static_cast<std::size_t>(alignment);
  if (size > SIZE_MAX - align) throw std::bad_alloc();
  return Counted(std::aligned_alloc(align, (std::max<std::size_t>(1, size) + align - 1) / align * align));
}
void operator delete(void* memory) noexcept { Release(memory); }
void operator delete(void* memory, std::size_t) noexcept { Release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { Release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { Release(memory); }

namespace headwise::testing {
namespace {

using Contents = std::vector<std::byte>;

template <typename T, int kRank>
Contents ContentsOf(const Tensor<T, kRank>& tensor) {
  const std::vector<T> values = tensor.Values();
  const auto* const bytes = reinterpret_cast<const std::byte*>(values.data());
  return {bytes, bytes + values.size() * sizeof(T)};
}

// Whether function() throws std::bad_alloc when its n-th allocation fails.
template <class Function>
bool Throws(const Function& function, int n) {
  bool failed = false;
  until_failure = n;
  try {
    function();
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  until_failure = 0;
  return failed;
}

// Also checks that nothing is leaked.
template <class Function>
bool Fails(const Function& function, int n) {
  const std::int64_t before = live;
  const bool failed = Throws(function, n);
  EXPECT_TRUE(!failed || live == before) << live - before << " lost after failure of allocation " << n;
  return failed;
}

// A call with its input and output tensors.
class Call {
 public:
  explicit Call(std::function<void()> run) : run_(std::move(run)) {}

  template <typename... Tensors>
  Call& Reads(const Tensors&... tensors) {
    (inputs_.push_back([tensors] { return ContentsOf(tensors); }), ...);
    return *this;
  }
  template <typename... Tensors>
  Call& Writes(const Tensors&... tensors) {
    (outputs_.push_back([tensors] { return ContentsOf(tensors); }), ...);
    (intact_.push_back([tensors] { return tensors.PaddingIntact(); }), ...);
    (clear_.push_back(
         [tensors] { tensors.ForEach([](auto& element) { std::memset(&element, 0x5A, sizeof element); }); }),
     ...);
    return *this;
  }

  // Returns the number of allocations.
  int Check() const {
    const std::vector<Contents> given = Of(inputs_);
    run_();
    const std::vector<Contents> expected = Of(outputs_);
    for (int n = 1;; ++n) {
      for (const auto& clear : clear_) clear();
      const std::vector<Contents> untouched = Of(outputs_);
      const bool failed = Fails(run_, n);
      EXPECT_TRUE(std::all_of(intact_.begin(), intact_.end(), [](const auto& intact) { return intact(); }));
      EXPECT_EQ(Of(inputs_), given);
      EXPECT_EQ(Of(outputs_), failed ? untouched : expected) << "allocation " << n;
      if (!failed) return n - 1;
      run_();
      EXPECT_EQ(Of(outputs_), expected) << "after failure of allocation " << n;
      if (::testing::Test::HasFailure()) return n;
    }
  }

 private:
  static std::vector<Contents> Of(const std::vector<std::function<Contents()>>& tensors) {
    std::vector<Contents> all;
    for (const auto& contents : tensors) all.push_back(contents());
    return all;
  }

  std::function<void()> run_;
  std::vector<std::function<Contents()>> inputs_, outputs_;
  std::vector<std::function<bool()>> intact_;
  std::vector<std::function<void()>> clear_;
};

template <typename T, int kRank>
Tensor<T, kRank> Full(std::array<std::int64_t, kRank> shape) {
  Tensor<T, kRank> tensor(shape, Guard::kAfter, Tensor<T, kRank>::InOrder(), 3);
  FillPeriodic(tensor);
  return tensor;
}

template <typename T, int kRank>
Tensor<T, kRank> Empty(std::array<std::int64_t, kRank> shape) {
  return Tensor<T, kRank>(shape, Guard::kAfter, Tensor<T, kRank>::InOrder(), 3);
}

// shape: (outer, n, inner).
template <typename T>
void CheckSoftmax(std::array<std::int64_t, 3> shape, int allocations) {
  const std::int64_t outer = shape[0], n = shape[1], inner = shape[2];
  const Tensor<T, 3> x(shape), out(shape);
  FillPeriodic(x);
  const Tensor<T, 2> sums({outer, inner});
  EXPECT_EQ(Call([=] { Softmax(x.read(), out.view()); }).Reads(x).Writes(out).Check(), allocations) << n;
  EXPECT_EQ(Call([=] { LogSoftmax(x.read(), out.view()); }).Reads(x).Writes(out).Check(), allocations) << n;
  EXPECT_EQ(Call([=] { LogSumExp(x.read(), sums.view()); }).Reads(x).Writes(sums).Check(), allocations) << n;
}

template <typename T>
void CheckElementwise() {
  using A = Accumulator<T>;
  // A row of 16-bit elements as float and its owner; the states of the parts of a long row; nothing for columns.
  CheckSoftmax<T>({50, 800, 1}, kIs16Bit<T> ? 2 : 0);
  CheckSoftmax<T>({1, 70'000, 1}, 1);
  CheckSoftmax<T>({2, 40, 600}, 0);

  const Tensor<T, 2> rows = Full<T, 2>({200, 500}), out = Empty<T, 2>({200, 500});
  const Tensor<T, 1> gamma = Full<T, 1>({500}), beta = Full<T, 1>({500});
  Call([=] { LayerNorm(rows.read(), gamma.data(), beta.data(), 1e-5, out.view()); })
      .Reads(rows, gamma, beta)
      .Writes(out)
      .Check();
  const Tensor<A, 1> d_gamma({500}), d_beta({500});
  // Sums of each thread and their owner, and sums of blocks.
  EXPECT_EQ(Call([=] {
              LayerNormBackward(rows.read(), rows.read(), gamma.data(), 1e-5, out.view(), d_gamma.data(),
                                d_beta.data());
            })
                .Reads(rows, gamma)
                .Writes(out, d_gamma, d_beta)
                .Check(),
            2);
  EXPECT_EQ(
      Call([=] { Activate(Activation::kGelu, rows.read(), rows.read(), out.view()); }).Reads(rows).Writes(out).Check(),
      0);

  const Tensor<T, 4> x = Full<T, 4>({2, 3, 100, 64}), turned = Empty<T, 4>({2, 3, 100, 64});
  const Tensor<A, 4> cos = Full<A, 4>({2, 3, 100, 32}), sin = Full<A, 4>({2, 3, 100, 32});
  for (const bool interleaved : {false, true}) {
    Call([=] { ApplyRope(x.read(), cos.read(), sin.read(), interleaved, turned.view()); })
        .Reads(x, cos, sin)
        .Writes(turned)
        .Check();
  }
  const Tensor<A, 1> slopes = Full<A, 1>({3});
  Call([=] { AddAlibi(x.read(), slopes.data(), 5, turned.view()); }).Reads(x, slopes).Writes(turned).Check();
}

template <typename T>
void CheckLinear() {
  const Tensor<Accumulator<T>, 1> bias = Full<Accumulator<T>, 1>({512});
  const Tensor<T, 2> weight = Full<T, 2>({500, 512});
  for (const std::int64_t rows : {9, 40}) {
    const Tensor<T, 2> x = Full<T, 2>({rows, 500}), out = Empty<T, 2>({rows, 512});
    Call call([=] { Linear(x.read(), weight.read(), bias.data(), out.view()); });
    EXPECT_EQ(call.Reads(x, weight, bias).Writes(out).Check(), 1);

    Call packed([=] { PackedLinear<T>(weight.read(), bias.data())(x.read(), out.view()); });
    EXPECT_EQ(packed.Reads(x, weight, bias).Writes(out).Check(),
              4);  // PackedLinear, the owner of the packed weights, these, scratch
  }
}

// After a change of target, the next call packs the weights again; if that fails, the call after it does.
template <typename T>
void CheckPackedAnew() {
  const std::string target = GetTarget();
  const std::string other = target == ListTargets().back() ? ListTargets().front() : ListTargets().back();
  const Tensor<T, 2> weight = Full<T, 2>({200, 300}), x = Full<T, 2>({50, 200}), out = Empty<T, 2>({50, 300});
  Linear(x.read(), weight.read(), nullptr, out.view());
  const Contents expected = ContentsOf(out);
  int n = 0;
  for (bool failed = true; failed && n < 10;) {
    const std::int64_t before = live;
    {
      SetTarget(other);
      const PackedLinear<T> linear(weight.read(), nullptr);
      SetTarget(target);
      failed = Throws([&] { linear(x.read(), out.view()); }, ++n);  // weights packed earlier stay packed
      out.ForEach([](T& element) { element = T{}; });
      linear(x.read(), out.view());
    }
    EXPECT_EQ(live, before) << "after failure of allocation " << n;
    EXPECT_EQ(ContentsOf(out), expected) << "after failure of allocation " << n;
  }
  EXPECT_EQ(n - 1, ListTargets().size() > 1 ? 3 : 1);  // the owner of the packed weights, these, scratch
}

template <typename T>
void CheckAttention() {
  using A = Accumulator<T>;
  // Blocks of queries; few queries with split-KV.
  for (const AttentionShape& shape :
       {AttentionShape{1, 2, 2, 70, 200, 16, 24}, AttentionShape{1, 2, 2, 3, 1100, 40, 40}}) {
    const bool decode = shape.group * shape.query_len <= 8;
    for (const bool everything : {false, true}) {
      AttentionCase<T> c(shape, 7);
      if (everything) {
        c.WantWeights(), c.WantLse();
        c.AddKeep(0.7), c.AddDropout(0.2), c.AddBias(1, 0.1), c.AddSlopes(0.1), c.AddSinks();
      }
      Call call([&] { Attention(c.args); });
      call.Reads(c.query, c.key, c.value).Writes(c.output);
      if (everything) call.Writes(c.weights, c.lse);
      EXPECT_EQ(call.Check(), decode ? 2 : 1);  // scratch and, for split-KV, partial results
    }
  }

  const Tensor<T, 4> query = Full<T, 4>({1, 4, 200, 16}), key = Full<T, 4>({1, 2, 1000, 16});
  const Tensor<T, 4> output = Empty<T, 4>({1, 4, 200, 16});
  const Tensor<A, 3> lse({1, 4, 200});
  std::vector<AttentionArgs<T>> calls;
  for (const auto [begin, rows, keys] : {std::array<std::int64_t, 3>{0, 150, 400}, {150, 1, 1000}, {151, 49, 100}}) {
    AttentionArgs<T>& args = calls.emplace_back();
    args.query = args.key = args.value = {};
    args.query = query.read(), args.key = key.read(), args.output = output.view(), args.lse = lse.view();
    args.query.data += begin * query.view().stride[2], args.output.data += begin * output.view().stride[2];
    args.lse.data += begin;
    args.query.shape[2] = args.output.shape[2] = args.lse.shape[2] = rows;
    args.key.shape[2] = keys;
    args.value = args.key;
  }
  Call varlen([&] { AttentionVarlen(calls); });
  EXPECT_EQ(varlen.Reads(query, key).Writes(output, lse).Check(), 3);  // and the schedules
}

template <typename T>
void CheckAttentionBackward() {
  std::deque<BackwardCase<T>> cases;
  std::vector<AttentionBackwardCall<T>> calls;
  for (const std::int64_t key_len : {200, 1100}) {
    AttentionShape shape;
    shape.kv_heads = 2, shape.group = 2, shape.query_len = 70, shape.key_len = key_len;
    BackwardCase<T>& c = cases.emplace_back(shape, 7);
    c.AddBias(1, 0.1, {true, false, true, true});
    c.AddRelativeBias(1, 0.1, 30), c.AddSlopes(0.1), c.AddSinks();
    c.WantParameters();
    c.RunForward();
    Call call([&] { AttentionBackward(c.args, c.gradients); });
    call.Reads(c.query, c.key, c.value, c.output, c.lse, c.d_output).Writes(c.d_query, c.d_key, c.d_value);
    // Slopes, sinks, places of biases and scratch; sums of d_query where there are several chunks.
    EXPECT_GE(call.Check(), key_len > 1000 ? 5 : 4);
    calls.push_back({c.args, c.gradients});
  }
  Call varlen([&] { AttentionBackwardVarlen(calls); });
  for (BackwardCase<T>& c : cases) {
    varlen.Reads(c.query, c.key, c.value, c.output, c.lse, c.d_output).Writes(c.d_query, c.d_key, c.d_value);
  }
  EXPECT_GE(varlen.Check(), 8);
}

class Memory : public OnTarget {
 protected:
  // On four threads in every type, on one in float.
  template <class Function>
  void InEveryType(const Function& function) {
    SetNumThreads(1);
    function(float());
    SetNumThreads(4);
    function(float());
    function(double());
    function(Float16());
    function(BFloat16());
  }
};

TEST_P(Memory, ElementwiseWithFailingAllocations) {
  InEveryType([](auto type) { CheckElementwise<decltype(type)>(); });
}
TEST_P(Memory, LinearWithFailingAllocations) {
  InEveryType([](auto type) { CheckLinear<decltype(type)>(); });
  CheckPackedAnew<float>();
  CheckPackedAnew<Float16>();
}
TEST_P(Memory, AttentionWithFailingAllocations) {
  InEveryType([](auto type) { CheckAttention<decltype(type)>(); });
}

TEST_P(Memory, AttentionBackwardWithFailingAllocations) {
  InEveryType([](auto type) { CheckAttentionBackward<decltype(type)>(); });
}

// Views of sizes that no memory can hold: the error comes before any access.
template <typename T>
void CheckSizes() {
  constexpr std::int64_t kHuge = std::int64_t{1} << 60;
  T one{};
  const View<const T, 2> deep{&one, {kHuge, 8}, {0, 1}}, wide{&one, {8, kHuge}, {1, 0}};
  const auto pack = [&](const View<const T, 2>& weight) {  // 16-bit weights at the first call
    const View<const T, 2> x{&one, {1, weight.shape[0]}, {0, 0}};
    PackedLinear<T>(weight, nullptr)(x, View<T, 2>{&one, {1, weight.shape[1]}, {0, 0}});
  };
  EXPECT_THROW(pack(deep), std::bad_alloc);
  EXPECT_THROW(pack(wide), std::bad_alloc);
  if (kIs16Bit<T>) {  // GEMV widens all rows
    const View<const T, 2> x{&one, {8, kHuge}, {0, 1}};
    EXPECT_THROW(Linear(x, deep, nullptr, View<T, 2>{&one, {8, 8}, {0, 1}}), std::bad_alloc);
  }
  for (const std::int64_t rows : {1, 100}) {
    const auto attend = [&](std::int64_t batch, std::int64_t keys, std::int64_t head_dim, std::int64_t value_dim) {
      AttentionArgs<T> args;
      args.query = {&one, {batch, 1, rows, head_dim}, {0, 0, 0, 1}};
      args.key = {&one, {batch, 1, keys, head_dim}, {0, 0, 0, 1}};
      args.value = {&one, {batch, 1, keys, value_dim}, {0, 0, 0, 1}};
      args.output = {&one, {batch, 1, rows, value_dim}, {0, 0, 0, 1}};
      EXPECT_THROW(Attention(args), std::bad_alloc);
      EXPECT_THROW(AttentionVarlen(std::vector<AttentionArgs<T>>{args, args}), std::bad_alloc);
    };
    attend(1, 50, kHuge, 8);
    attend(1, 50, 8, kHuge);
    attend(1, 50, 4 * kHuge, 4 * kHuge - 1);
    if (rows == 1) attend(kHuge, 5000, 8, 8);  // partial results of several chunks of each sequence
  }
}

TEST_P(Memory, SizesThatNoMemoryCanHold) {
  InEveryType([](auto type) { CheckSizes<decltype(type)>(); });
}

HEADWISE_ON_EVERY_TARGET(Memory);

TEST(ScratchMemory, CountsThatOverflow) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  Arena arena(nullptr);
  EXPECT_THROW(arena.Allocate<float>(std::int64_t{1} << 31, std::int64_t{1} << 31), std::bad_alloc);
  EXPECT_THROW(arena.Allocate<float>(kMax), std::bad_alloc);
  EXPECT_THROW(arena.Allocate<std::byte>(-1), std::bad_alloc);
  EXPECT_EQ(arena.used(), 0u);
  arena.Allocate<std::byte>(kMax / 2);
  EXPECT_THROW(arena.Allocate<std::byte>(kMax / 2 + 100), std::bad_alloc);
  EXPECT_THROW(Scratch(1, SIZE_MAX), std::bad_alloc);
  EXPECT_THROW(Scratch(1, SIZE_MAX / 2), std::bad_alloc);
  EXPECT_THROW(Scratch(1 << 30, std::size_t{1} << 40), std::bad_alloc);
  EXPECT_EQ(Bytes(4, 0, kMax), 0u);
  EXPECT_EQ(Bytes(8, 3, std::int64_t{1} << 40), std::size_t{24} << 40);
}

// Results of 32 MB and more are written with non-temporal stores from a scratch row or block of rows.
TEST(LargeResults, WithFailingAllocations) {
  std::vector<float> x(8'400'000, 0.5f), out(x.size()), angles(x.size() / 2, 0.25f);
  const auto check = [&](const auto& run) {
    run();
    const std::vector<float> expected = out;
    EXPECT_TRUE(Fails(run, 1));  // the memory and its owner
    EXPECT_TRUE(Fails(run, 2));
    EXPECT_FALSE(Fails(run, 3));
    EXPECT_EQ(out, expected);
  };
  check([&] {
    Softmax<float>({x.data(), {8400, 1000, 1}, {1000, 1, 1}}, {out.data(), {8400, 1000, 1}, {1000, 1, 1}});
  });
  const View<const float, 4> table{angles.data(), {1, 1, 8400, 500}, {0, 0, 500, 1}};
  const std::array<std::int64_t, 4> shape{1, 1, 8400, 1000}, stride{8'400'000, 8'400'000, 1000, 1};
  check([&] { ApplyRope<float>({x.data(), shape, stride}, table, table, true, {out.data(), shape, stride}); });
}

}  // namespace
}  // namespace headwise::testing
