#include "headwise/linear.h"

#include "reference/reference.h"
#include "support.h"

namespace headwise::testing {
namespace {

class LinearTest : public OnTarget {};

constexpr std::array<std::int64_t, 2> kRowsFirst{0, 1};
constexpr std::array<std::int64_t, 2> kColumnsFirst{1, 0};  // a weight stored (out, in), used transposed

// From this size on, in each axis, float32 goes by tiles where there are any; below it, by multiply-adds.
constexpr std::int64_t kTiles = 32;
bool HasTiles() { return GetTarget() == "avx512_amx"; }

template <typename T>
struct Case {
  Tensor<T, 2> x, weight;
  Tensor<T, 1> bias;
  Guard guard;

  Case(std::int64_t rows, std::int64_t depth, std::int64_t columns, std::array<std::int64_t, 2> order = kRowsFirst,
       Guard guard = Guard::kAfter, std::int64_t pad = 3)
      : x({rows, depth}, guard, kRowsFirst, pad),
        weight({depth, columns}, guard, order, pad),
        bias({columns}, guard),
        guard(guard) {
    Random random(static_cast<std::uint64_t>(rows * 10'000 + depth * 100 + columns));
    FillNormal(x, random);
    FillNormal(weight, random);
    FillNormal(bias, random);
  }

  std::vector<T> Run(bool with_bias = true, Precision precision = Precision::kHighest) const {
    const Tensor<T, 2> out({x.view().shape[0], weight.view().shape[1]}, guard, kRowsFirst, 3);
    Linear(x.read(), weight.read(), with_bias ? bias.data() : nullptr, out.view(), precision);
    EXPECT_TRUE(out.PaddingIntact());
    return out.Values();
  }

  void Check(bool with_bias = true) const {
    const std::int64_t depth = x.view().shape[1];
    const auto expected = reference::Linear(x.read(), weight.read(), with_bias ? bias.data() : nullptr);
    EXPECT_TRUE(Near(Run(with_bias), expected, (8 + 2 * static_cast<double>(depth)) * kEpsilon<T>, 4 * kEpsilon<T>))
        << x.view().shape[0] << " x " << depth << " x " << weight.view().shape[1];
  }
};

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
  CheckSizes<float>();
  CheckSizes<double>();
}

// Tails of tiles: more than half of every tile is numbers.
TEST_P(LinearTest, EverySizeOfTilesBothLayoutsNothingOutOfBounds) {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const auto& order : {kRowsFirst, kColumnsFirst}) {
      for (const std::int64_t size : {32, 33, 41, 47, 48, 49, 57, 63, 64, 65, 79, 97}) {
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

// Beyond one block of rows, of columns and of depth.
template <typename T>
void CheckBlocks() {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    Case<T>(500, 40, 70, order).Check();
    Case<T>(13, 600, 300, order).Check();
    Case<T>(13, 600, 300, order).Check(false);
    Case<T>(20, 600, 300, order).Check();
    Case<T>(20, 40, 600, order).Check();
    Case<T>(50, 700, 530, order).Check();
    Case<T>(500, 260, 40, order).Check(false);
    Case<T>(1, 1030, 520, order).Check();
    Case<T>(3, 70, 2100, order).Check();
  }
}
TEST_P(LinearTest, Blocks) {
  CheckBlocks<float>();
  CheckBlocks<double>();
}

// Sums run in the same order whether the weights are packed or not, where their rows are contiguous; on tiles in
// another, but the same for any number of rows that go by them.
template <typename T>
void CheckFewRows(std::int64_t most) {
  const Case<T> all(most, 300, 339);
  const std::vector<T> expected = all.Run();
  const bool tiles = std::is_same_v<T, float> && HasTiles() && most >= kTiles;
  for (std::int64_t rows = tiles ? kTiles : 1; rows < most; ++rows) {
    const Tensor<T, 2> out({rows, 339});
    View<const T, 2> x = all.x.read();
    x.shape[0] = rows;
    Linear(x, all.weight.read(), all.bias.data(), out.view());
    EXPECT_TRUE(Identical(out.Values(), {expected.begin(), expected.begin() + rows * 339})) << rows << " rows";
  }
}
TEST_P(LinearTest, ARowHasTheSameBitsHoweverManyThereAre) {
  CheckFewRows<float>(kTiles - 1);
  CheckFewRows<float>(70);
  CheckFewRows<double>(40);
}

// Rows of x in reverse, one row of x for all, half of the columns of the weight, its rows in reverse.
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
          *test.x.view().at(where, 5) = static_cast<T>(odd);
          test.Check();
          const Case<T> other(rows, 50, 60, order);
          *other.weight.view().at(5, where) = static_cast<T>(odd);
          other.Check();
        }
      }
    }
  }
}
TEST_P(LinearTest, NaNAndInfinityStayInTheirRowOrColumn) {
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
  CheckThreads<float>();
  CheckThreads<double>();
}

TEST_P(LinearTest, Empty) {
  for (const auto& order : {kRowsFirst, kColumnsFirst}) {
    Case<float>(0, 5, 7, order).Check();
    Case<float>(5, 7, 0, order).Check();
    Case<float>(5, 0, 7, order).Check();  // the bias alone
    Case<double>(5, 0, 7, order).Check(false);
  }
}

HEADWISE_ON_EVERY_TARGET(LinearTest);

}  // namespace
}  // namespace headwise::testing
