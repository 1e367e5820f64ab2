#include <atomic>
#include <thread>

#include "linear_case.h"

namespace headwise::testing {
namespace {

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const auto& order : {kRowsFirst, kColumnsFirst}) {
      for (const std::int64_t size : Sizes()) {
        for (const std::int64_t pad : {0, 3}) {
          Case<T>(size, 9, 19, order, guard, pad).Check();
          Case<T>(7, size, 19, order, guard, pad).Check();
          Case<T>(7, 9, size, order, guard, pad).Check();
          Case<T>(18, size, 19, order, guard, pad).Check();
          Case<T>(18, 9, size, order, guard, pad).Check();
        }
        Case<T>(1, size, size, order, guard).Check(false);
      }
    }
  }
}
TEST_P(LinearTest, EverySizeBothLayoutsNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// Tails of tiles: more than half of every tile is used.
TEST_P(LinearTest, EverySizeOfTilesBothLayoutsNothingOutOfBounds) {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const auto& order : {kRowsFirst, kColumnsFirst}) {
      for (const std::int64_t size : {32, 33, 41, 47, 48, 49, 57, 63, 64, 65, 79, 97}) {
        Case<Float16>(size, 64, 40, order, guard).Check();
        Case<BFloat16>(50, size, size, order, guard).Check(false);
        for (const std::int64_t pad : {0, 3}) {
          Case<float>(size, 64, 32, order, guard, pad).Check();
          Case<float>(32, size, 64, order, guard, pad).Check(pad == 0);
          Case<float>(64, 32, size, order, guard, pad).Check();
        }
        Case<float>(size, size + 30, size, order, guard).Check(false);
      }
    }
  }
}

// More than one block of rows, columns and depth.
template <typename T>
void CheckBlocks() {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      Case<T>(500, 40, 70, order, guard).Check();
      Case<T>(13, 600, 300, order, guard).Check(guard == Guard::kAfter);
      Case<T>(20, 600, 300, order, guard).Check();
      Case<T>(20, 40, 600, order, guard).Check();
      Case<T>(500, 260, 40, order, guard).Check(false);
      Case<T>(1, 1030, 520, order, guard).Check();
      Case<T>(3, 70, 2100, order, guard).Check();
    }
    Case<T>(50, 700, 530, order).Check();
  }
}
TEST_P(LinearTest, Blocks) {
  CheckBlocks<Float16>();
  CheckBlocks<BFloat16>();
  CheckBlocks<float>();
  CheckBlocks<double>();
}

// If the rows of the weights are contiguous, sums have the same order with packed and unpacked weights. AMX has another
// order, the same for any number of rows that use it.
template <typename T>
void CheckRowCounts(std::int64_t max_rows) {
  const Case<T> all(max_rows, 300, 339);
  const std::vector<T> expected = all.Run();
  const bool bf16 = HasBf16Products<T>(Precision::kHighest) && max_rows >= kMinBf16Rows<T>;
  for (std::int64_t rows = bf16 ? kMinBf16Rows<T> : 1; rows < max_rows; ++rows) {
    const Tensor<T, 2> out({rows, 339});
    View<const T, 2> x = all.x.read();
    x.shape[0] = rows;
    Linear(x, all.weight.read(), all.bias.data(), out.view());
    EXPECT_TRUE(Identical(out.Values(), {expected.begin(), expected.begin() + rows * 339})) << rows << " rows";
  }
}
TEST_P(LinearTest, BitsOfARowDoNotDependOnTheNumberOfRows) {
  SetBf16ForAnyShape(false);
  CheckRowCounts<Float16>(kMinBf16Rows<Float16> - 1);
  CheckRowCounts<Float16>(70);
  CheckRowCounts<BFloat16>(kMinBf16Rows<BFloat16> - 1);
  CheckRowCounts<BFloat16>(70);
  CheckRowCounts<float>(kMinBf16Rows<float> - 1);
  CheckRowCounts<float>(70);
  CheckRowCounts<double>(40);
}

// Reversed rows of x, one broadcast row of x, every other column of the weight, and reversed rows of it.
template <typename T>
void CheckStrides(std::int64_t rows) {
  const Case<T> test(rows, 60, 120);
  const Tensor<T, 2> out({rows, 60});
  View<const T, 2> x = test.x.read(), weight = test.weight.read();
  x.data = test.x.read().at(rows - 1);
  x.stride[0] = -x.stride[0];
  weight.shape[1] = 60;
  const auto check = [&] {
    Linear(x, weight, test.bias.data(), out.view());
    EXPECT_TRUE(Near(out.Values(), reference::Linear(x, weight, test.bias.data()), 128 * kEpsilon<T>));
  };
  check();
  x.stride[0] = 0;
  check();
  weight.stride[0] = -weight.stride[0];
  weight.data = test.weight.read().at(59);
  check();
}
TEST_P(LinearTest, Strides) {
  for (const std::int64_t rows : {9, 40}) {
    CheckStrides<Float16>(rows);
    CheckStrides<BFloat16>(rows);
    CheckStrides<float>(rows);
    CheckStrides<double>(rows);
  }
}

template <typename T>
void CheckNonFinite() {
  for (const double odd : {kNaN, kInf, -kInf}) {
    for (const auto& order : {kRowsFirst, kColumnsFirst}) {
      for (const std::int64_t rows : {7, 19, 50}) {
        for (const std::int64_t where : {std::int64_t{0}, rows / 2, rows - 1}) {
          const Case<T> test(rows, 50, 60, order);
          *test.x.view().at(where, 5) = reference::Nearest<T>(odd);
          test.Check();
          const Case<T> other(rows, 50, 60, order);
          *other.weight.view().at(5, where) = reference::Nearest<T>(odd);
          other.Check();
        }
      }
    }
  }
}
TEST_P(LinearTest, NaNAndInfinityStayInTheirRowOrColumn) {
  CheckNonFinite<Float16>();
  CheckNonFinite<BFloat16>();
  CheckNonFinite<float>();
  CheckNonFinite<double>();
}

template <typename T>
void CheckThreads() {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    for (const Case<T>& test : {Case<T>(300, 300, 300, order), Case<T>(1, 2000, 1000, order),
                                Case<T>(7, 300, 3001, order), Case<T>(16, 3001, 30, order)}) {
      SetNumThreads(1);
      const std::vector<T> expected = test.Run();
      for (const int threads : {2, 4}) {
        SetNumThreads(threads);
        EXPECT_TRUE(Identical(test.Run(), expected)) << threads << " threads";
      }
    }
  }
}
TEST_P(LinearTest, SameBitsForAnyThreadCount) {
  CheckThreads<Float16>();
  CheckThreads<BFloat16>();
  CheckThreads<float>();
  CheckThreads<double>();
}

template <typename T>
void CheckPacked(std::int64_t depth, std::int64_t columns, std::array<std::int64_t, 2> order, Precision precision) {
  const Guard guard = order == kRowsFirst ? Guard::kAfter : Guard::kBefore;
  const Case<T> test(600, depth, columns, order, guard);
  const ReadOnly inputs(test.x, test.weight, test.bias);
  const PackedLinear<T> packed(test.weight.read(), test.bias.data(), precision);
  const PackedLinear<T> without_bias(test.weight.read(), nullptr, precision);
  for (const std::int64_t rows : {0, 1, 5, 16, 17, 31, 32, 100, 600}) {
    View<const T, 2> x = test.x.read();
    x.shape[0] = rows;
    const Tensor<T, 2> expected({rows, columns}), got({rows, columns}, guard, kRowsFirst, 3);
    Linear(x, test.weight.read(), test.bias.data(), expected.view(), precision);
    packed(x, got.view());
    EXPECT_TRUE(Identical(got.Values(), expected.Values())) << rows << "x" << depth << "x" << columns;
    Linear(x, test.weight.read(), nullptr, expected.view(), precision);
    without_bias(x, got.view());
    EXPECT_TRUE(Identical(got.Values(), expected.Values())) << rows << "x" << depth << "x" << columns;
    EXPECT_TRUE(got.PaddingIntact());
  }
}
TEST_P(LinearTest, PackedHasTheSameBits) {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    for (const Precision precision : {Precision::kHighest, Precision::kHigh, Precision::kMedium}) {
      CheckPacked<Float16>(300, 70, order, precision);
      CheckPacked<BFloat16>(45, 530, order, precision);
      CheckPacked<float>(300, 70, order, precision);
      CheckPacked<float>(45, 530, order, precision);
      CheckPacked<float>(7, 9, order, precision);
    }
    CheckPacked<double>(300, 530, order, Precision::kHighest);
    CheckPacked<double>(0, 30, order, Precision::kHighest);
    CheckPacked<float>(30, 0, order, Precision::kHighest);
    CheckPacked<float>(0, 40, order, Precision::kHighest);
  }
}

// 16-bit weights under float32 x give the bits of the weights widened to float32, which the accuracy of float covers.
template <typename W>
void CheckNarrowWeights(std::int64_t depth, std::int64_t columns, std::array<std::int64_t, 2> order,
                        Precision precision) {
  const Guard guard = order == kRowsFirst ? Guard::kAfter : Guard::kBefore;
  const Case<float> test(100, depth, columns, order, guard);
  const Tensor<W, 2> narrow({depth, columns}, guard, order, 3);
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t j = 0; j < columns; ++j) {
      *narrow.view().at(k, j) = reference::Nearest<W>(*test.weight.view().at(k, j));
      *test.weight.view().at(k, j) = static_cast<float>(reference::ToDouble(*narrow.view().at(k, j)));
    }
  }
  const ReadOnly inputs(test.x, narrow, test.bias);
  const PackedLinear<W> packed(narrow.read(), test.bias.data(), precision);
  for (const std::int64_t rows : {0, 1, 3, 16, 17, 40, 100}) {
    View<const float, 2> x = test.x.read();
    x.shape[0] = rows;
    const Tensor<float, 2> expected({rows, columns});
    Linear(x, test.weight.read(), test.bias.data(), expected.view(), precision);
    for (const bool is_packed : {false, true}) {
      const Tensor<float, 2> got({rows, columns}, guard, kRowsFirst, 3);
      if (is_packed) {
        packed(x, got.view());
      } else {
        Linear(x, narrow.read(), test.bias.data(), got.view(), precision);
      }
      EXPECT_TRUE(Identical(got.Values(), expected.Values())) << rows << "x" << depth << "x" << columns << is_packed;
      EXPECT_TRUE(got.PaddingIntact());
    }
  }
}
TEST_P(LinearTest, NarrowWeightsHaveTheBitsOfWideOnes) {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    for (const Precision precision : {Precision::kHighest, Precision::kMedium}) {
      CheckNarrowWeights<Float16>(300, 70, order, precision);
      CheckNarrowWeights<Float16>(9, 530, order, precision);
      CheckNarrowWeights<BFloat16>(45, 530, order, precision);
      CheckNarrowWeights<BFloat16>(600, 1, order, precision);
      CheckNarrowWeights<BFloat16>(0, 40, order, precision);
    }
  }
}

TEST_P(LinearTest, PackedOnAnotherTarget) {
  const Case<float> test(70, 300, 100);
  PackedLinear<float> first(test.weight.read(), test.bias.data()), packed = std::move(first);
  for (const std::string& target : ListTargets()) {
    SetTarget(target);
    const Tensor<float, 2> out({70, 100});
    packed(test.x.read(), out.view());
    EXPECT_TRUE(Identical(out.Values(), test.Run())) << target;
  }
  SetTarget(GetParam());
}

TEST_P(LinearTest, PackedFromManyThreadsWhileTheTargetChanges) {
  const Case<float> test(70, 300, 100);
  const PackedLinear<float> packed(test.weight.read(), test.bias.data());
  const auto expected = reference::Linear(test.x.read(), test.weight.read(), test.bias.data());
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      const Tensor<float, 2> out({70, 100});
      for (int n = 0; n < 20; ++n) {
        packed(test.x.read(), out.view());
        wrong += !Near(out.Values(), expected, 1e-4);
      }
    });
  }
  for (int n = 0; n < 20; ++n) {
    for (const std::string& target : ListTargets()) SetTarget(target);
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
  SetTarget(GetParam());
}

TEST_P(LinearTest, Empty) {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    Case<float>(0, 5, 7, order).Check();
    Case<float>(5, 7, 0, order).Check();
    for (const std::int64_t rows : {5, 40}) Case<float>(rows, 0, 7, order).Check();  // only the bias
    Case<double>(5, 0, 7, order).Check(false);
    Case<float>(40, 0, 40, order).Check();
  }
}

HEADWISE_ON_EVERY_TARGET(LinearTest);

}  // namespace
}  // namespace headwise::testing
