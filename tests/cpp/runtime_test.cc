#include "headwise/runtime.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>

#include "alibi/kernel.h"
#include "attention/kernel.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/softmax.h"
#include "layer_norm/kernel.h"
#include "rope/kernel.h"
#include "softmax/kernel.h"
#include "support.h"

namespace headwise::testing {
namespace {

std::string MessageOf(void (*function)()) {
  try {
    function();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(TargetsTest, TheFirstIsTheDefault) {
  ASSERT_FALSE(ListTargets().empty());
  EXPECT_EQ(GetTarget(), ListTargets().front());
  const std::vector<std::string> targets = ListTargets();
  EXPECT_EQ(std::set<std::string>(targets.begin(), targets.end()).size(), targets.size());
}

TEST(TargetsTest, UnknownNameIsAnErrorThatListsTheTargets) {
  const std::string before = GetTarget();
  const std::string message = MessageOf([] { SetTarget("z80"); });
  EXPECT_NE(message.find("'z80'"), std::string::npos) << message;
  for (const std::string& target : ListTargets()) EXPECT_NE(message.find(target), std::string::npos) << message;
  EXPECT_NE(MessageOf([] { SetTarget(""); }), "");
  EXPECT_EQ(GetTarget(), before);
}

// Attention over n queries and keys with head_dim 64.
template <typename T>
AttentionArgs<T> ArgsOf(std::int64_t length) {
  AttentionArgs<T> args;
  args.query.shape = args.key.shape = args.value.shape = {1, 1, length, 64};
  return args;
}

// Each target must lead to functions of its own, and targets with bf16 products to one that avx512 does not have.
TEST(TargetsTest, EachTargetRunsItsOwnCode) {
  std::set<const void*> tables;
  std::set<decltype(AttentionKernel<BFloat16>::block)> attention;
  std::set<decltype(SoftmaxFunctions<float>::rows)> functions;
  std::set<decltype(LayerNormKernel<double>::layer_norm)> more;
  const AttentionArgs<BFloat16> args = ArgsOf<BFloat16>(128);
  for (const std::string& target : ListTargets()) {
    SetTarget(target);
    tables.insert({&ChosenSoftmaxKernels(), &ChosenAlibiKernels(), &ChosenLayerNormKernels(), &ChosenRopeKernels()});
    attention.insert(GetAttentionKernel(args).block);
    functions.insert(ChosenSoftmaxKernels().float32.softmax.rows);
    more.insert(ChosenLayerNormKernels().float64.layer_norm);
  }
  const std::vector<std::string> targets = ListTargets();
  const auto has = [&](const char* name) {
    return static_cast<std::size_t>(std::count(targets.begin(), targets.end(), name));
  };
  const std::size_t sets = targets.size() - has("avx512_amx") - has("avx512_bf16");
  EXPECT_EQ(attention.size(), targets.size());
  EXPECT_EQ(tables.size(), 4 * sets);
  EXPECT_EQ(functions.size(), sets);
  EXPECT_EQ(more.size(), sets);
  SetTarget(ListTargets().front());
}

TEST(TargetsTest, SmallShapesUseFmaOnTargetsWithAmx) {
  const std::vector<std::string> targets = ListTargets();
  if (std::count(targets.begin(), targets.end(), "avx512_amx") == 0) GTEST_SKIP() << "no AMX on this machine";
  SetTarget("avx512_amx");
  const auto few = GetAttentionKernel(ArgsOf<float>(127)).block, many = GetAttentionKernel(ArgsOf<float>(128)).block;
  SetTarget("avx512");
  EXPECT_EQ(few, GetAttentionKernel(ArgsOf<float>(127)).block);
  EXPECT_NE(many, GetAttentionKernel(ArgsOf<float>(128)).block);
  SetTarget(targets.front());
}

TEST(ThreadsTest, AtLeastOne) {
  const int before = GetNumThreads();
  EXPECT_GE(before, 1);
  for (const auto function : {+[] { SetNumThreads(0); }, +[] { SetNumThreads(-3); }}) {
    EXPECT_NE(MessageOf(function).find("num_threads"), std::string::npos);
  }
  EXPECT_EQ(GetNumThreads(), before);
  SetNumThreads(3);
  EXPECT_EQ(GetNumThreads(), 3);
  SetNumThreads(before);
}

TEST(ThreadsTest, EveryTaskOnceOnAThreadThatExists) {
  const int before = GetNumThreads();
  for (const int set : {1, 2, 5}) {
    SetNumThreads(set);
    for (const std::int64_t tasks : {0, 1, 2, 7, 1000}) {
      const int threads = ThreadsFor(tasks, 1e9);
      EXPECT_GE(threads, 1);
      EXPECT_LE(threads, set);
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      std::atomic<int> strangers{0};
      ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
        ++runs[static_cast<std::size_t>(task)];
        if (thread < 0 || thread >= threads) ++strangers;
      });
      for (const auto& n : runs) EXPECT_EQ(n, 1);
      EXPECT_EQ(strangers, 0);
    }
  }
  EXPECT_EQ(ThreadsFor(1000, 10), 1);  // too little work
  SetNumThreads(before);
}

TEST(ThreadsTest, RangesPartitionTheWhole) {
  for (const std::int64_t size : {0, 1, 2, 3, 15, 16, 17, 1001}) {
    for (const double work : {1.0, 1e9}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(size));
      ParallelRanges(size, work, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++runs[static_cast<std::size_t>(i)];
      });
      for (const auto& n : runs) EXPECT_EQ(n, 1);
    }
  }
}

// Pieces of scratch memory are adjacent in one allocation: gaps between them are poisoned, too.
TEST(ScratchTest, PiecesDoNotOverlapAndStartOnCacheLines) {
  const auto take = [](Arena& arena) {
    return std::array<char*, 3>{arena.Allocate<char>(3), arena.Allocate<char>(0), arena.Allocate<char>(64)};
  };
  Arena measure(nullptr);
  take(measure);
  const Scratch scratch(2, measure.used());
  for (const int thread : {0, 1}) {
    Arena arena(scratch.thread(thread));
    const std::array<char*, 3> pieces = take(arena);
    for (const char* piece : pieces) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece) % kCacheLine, 0u);
    std::fill_n(pieces[0], 3, 'a');
    std::fill_n(pieces[2], 64, 'b');
    EXPECT_EQ(pieces[0][2], 'a');
    EXPECT_LE(pieces[2] + 64, reinterpret_cast<char*>(scratch.thread(thread)) + measure.used());
#ifdef __SANITIZE_ADDRESS__
    EXPECT_DEATH(*const_cast<volatile char*>(pieces[0] + 3) = 0, "use-after-poison");
    EXPECT_DEATH(*const_cast<volatile char*>(pieces[2] + 64) = 0, "use-after-poison");
    EXPECT_DEATH(*const_cast<volatile char*>(pieces[2] - 1) = 0, "use-after-poison");
#endif
  }
}

// Concurrent calls from many threads, each with its own parallel region, while the target changes.
TEST(ThreadsTest, CallableFromManyThreads) {
  const Tensor<float, 3> x({100, 1000, 1});
  Random random(1);
  FillNormal(x, random);
  const std::vector<std::string> targets = ListTargets();
  std::vector<Tensor<float, 3>> outs;
  for (int i = 0; i < 4; ++i) outs.emplace_back(x.view().shape);
  std::vector<std::thread> callers;
  for (const Tensor<float, 3>& out : outs) {
    callers.emplace_back([&x, &out] {
      for (int i = 0; i < 20; ++i) Softmax(x.read(), out.view());
    });
  }
  for (int i = 0; i < 100; ++i) SetTarget(targets[static_cast<std::size_t>(i) % targets.size()]);
  for (std::thread& caller : callers) caller.join();
  SetTarget(targets.front());
  for (const Tensor<float, 3>& out : outs) {
    for (std::int64_t row = 0; row < 100; ++row) {
      double sum = 0;
      for (std::int64_t i = 0; i < 1000; ++i) sum += *out.view().at(row, i);
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  }
}

}  // namespace
}  // namespace headwise::testing
