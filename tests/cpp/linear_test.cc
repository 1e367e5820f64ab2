#include "headwise/linear.h"

#include <atomic>
#include <thread>

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class LinearTest : public OnTarget {};

constexpr std::array<std::int64_t, 2> kRowsFirst{0, 1};
constexpr std::array<std::int64_t, 2> kColumnsFirst{1, 0};  // a weight stored (out, in), used transposed

// Rows from which targets with AMX use it; fewer rows use FMA.
template <typename T>
constexpr std::int64_t kMinBf16Rows = std::is_same_v<T, BFloat16> ? 9 : 32;
bool HasBf16(Precision precision = Precision::kHighest) { return HasBf16Products<float>(precision); }

template <typename T>
struct Case {
  Tensor<T, 2> x, weight;
  Tensor<Accumulator<T>, 1> bias;
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
    const ReadOnly inputs(x, weight, bias);
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

// Root mean square error for elements of variance 1, divided by the square root of the depth.
double ScaledError(const std::vector<float>& got, const std::vector<double>& expected, std::int64_t depth) {
  double sum = 0;
  for (std::size_t i = 0; i < got.size(); ++i) sum += std::pow(static_cast<double>(got[i]) - expected[i], 2);
  return std::sqrt(sum / static_cast<double>(got.size() * static_cast<std::size_t>(depth)));
}

// On AMX, "highest" is at least as accurate as FMA; the other levels have bounds of their own.
TEST_P(LinearTest, Precision) {
  for (const std::int64_t depth : {32, 64, 150, 500, 2000}) {
    const Case<float> test(64, depth, 96);
    const auto expected = reference::Linear(test.x.read(), test.weight.read(), test.bias.data());
    const auto error = [&](Precision precision) { return ScaledError(test.Run(true, precision), expected, depth); };
    const double highest = error(Precision::kHighest), high = error(Precision::kHigh);
    const double medium = error(Precision::kMedium);
    if (HasBf16()) {
      SetTarget("avx512");
      EXPECT_LE(highest, error(Precision::kHighest)) << depth;
      SetTarget(GetParam());
      EXPECT_GT(high, 1e-6) << depth;
      EXPECT_LT(high, 5.5e-6) << depth;
    } else {
      EXPECT_EQ(highest, high);
    }
    if (HasBf16(Precision::kMedium)) {
      EXPECT_GT(medium, 5e-4) << depth;
      EXPECT_LT(medium, 3e-3) << depth;
    } else {
      EXPECT_EQ(highest, medium);
    }
  }
}

// Levels below "highest" use fewer terms of a float16; a bfloat16 is one term.
TEST_P(LinearTest, PrecisionOf16BitTypes) {
  const Case<Float16> test(64, 300, 96);
  const Case<BFloat16> other(64, 300, 96);
  const auto expected = reference::Linear(test.x.read(), test.weight.read(), test.bias.data());
  const auto highest = test.Run(), high = test.Run(true, Precision::kHigh), medium = test.Run(true, Precision::kMedium);
  EXPECT_TRUE(Near(high, expected, 1e-3));
  EXPECT_TRUE(Near(medium, expected, 0.5));
  EXPECT_NE(Identical(medium, highest), HasBf16Products<Float16>(Precision::kMedium));
  EXPECT_TRUE(Identical(other.Run(), other.Run(true, Precision::kMedium)));
}

// The maximum error, less `absolute`, relative to the sum of the magnitudes of the summands.
double WorstError(const Case<float>& test, double absolute = 0) {
  const std::vector<float> got = test.Run();
  const auto expected = reference::Linear(test.x.read(), test.weight.read(), test.bias.data());
  double worst = 0;
  std::size_t i = 0;
  for (std::int64_t r = 0; r < test.x.view().shape[0]; ++r) {
    for (std::int64_t n = 0; n < test.weight.view().shape[1]; ++n, ++i) {
      double magnitude = std::abs(static_cast<double>(test.bias.data()[n])), allowed = 0;
      for (std::int64_t k = 0; k < test.x.view().shape[1]; ++k) {
        const double x = std::abs(*test.x.view().at(r, k)), weight = std::abs(*test.weight.view().at(k, n));
        magnitude += x * weight;
        allowed += absolute * (x + weight + 1);
      }
      const double error = std::abs(static_cast<double>(got[i]) - expected[i]) - allowed;
      EXPECT_FALSE(std::isnan(error)) << i;
      worst = std::max(worst, error / std::max(magnitude, 1e-300));
    }
  }
  return worst;
}

constexpr double kRelative = 32 * kEpsilon<float>;  // for a depth of 300 on any target

// Magnitudes that differ by 2^60 within each row and column, at random places.
TEST_P(LinearTest, HugeAndTinyNumbersInOneRow) {
  for (const int exponent : {4, 12, 30}) {
    const Case<float> test(40, 300, 45);
    Random random(9);
    const auto scale = [&](float& element) {
      element = std::ldexp(element, static_cast<int>(Integer(random, -exponent, exponent)));
    };
    test.x.ForEach(scale);
    test.weight.ForEach(scale);
    const double worst = WorstError(test);
    EXPECT_LT(worst, kRelative);
    if (!HasBf16()) continue;
    SetTarget("avx512");
    EXPECT_LE(worst, WorstError(test)) << exponent;
    SetTarget(GetParam());
  }
}

// Each element of x occurs twice with opposite signs, and is multiplied with nearly equal weights.
TEST_P(LinearTest, CancellingNumbers) {
  const Case<float> test(40, 300, 45);
  for (std::int64_t r = 0; r < 40; ++r) {
    for (std::int64_t k = 0; k < 300; k += 2) *test.x.view().at(r, k + 1) = -*test.x.view().at(r, k);
  }
  for (std::int64_t k = 0; k < 300; k += 2) {
    for (std::int64_t n = 0; n < 45; ++n) {
      const float weight = *test.weight.view().at(k, n);
      *test.weight.view().at(k + 1, n) = weight + weight * static_cast<float>(n % 3) * 1e-6f;
    }
  }
  const double worst = WorstError(test);
  EXPECT_LT(worst, kRelative);
  if (HasBf16()) {
    SetTarget("avx512");
    EXPECT_LE(worst, WorstError(test));
    SetTarget(GetParam());
  }
}

// The bound of headwise/linear.h for elements whose terms or products are subnormal.
TEST_P(LinearTest, SubnormalNumbers) {
  for (const int exponent : {-100, -110, -118, -125, -135, -149}) {
    for (const int other : {-30, -10, 0, 20, 100}) {
      const Case<float> test(40, 300, 45);
      test.x.ForEach([&](float& element) { element = std::ldexp(element, exponent); });
      test.weight.ForEach([&](float& element) { element = std::ldexp(element, other); });
      for (std::int64_t n = 0; n < 45; ++n) test.bias.data()[n] = 0;
      EXPECT_LT(WorstError(test, std::ldexp(1, HasBf16() ? -123 : -149)), kRelative) << exponent << " " << other;
    }
  }
}

// Products and sums near the largest number and beyond it give the same results as FMA.
TEST_P(LinearTest, Overflow) {
  const Case<float> test(40, 70, 45);
  Random random(3);
  test.x.ForEach([&](float& element) { element = 0; });
  test.weight.ForEach([&](float& element) { element = std::ldexp(element, 100); });
  const float largest = std::numeric_limits<float>::max();
  for (std::int64_t r = 0; r < 40; ++r) {
    for (std::int64_t k = 0; k < 3; ++k) {
      *test.x.view().at(r, Integer(random, 0, 69)) = std::ldexp(1.999f, static_cast<int>(Integer(random, 20, 27)));
    }
  }
  for (std::int64_t n = 0; n < 45; n += 4) *test.weight.view().at(n, n) = n % 8 ? largest : -largest;
  for (std::int64_t k = 0; k < 70; k += 9) *test.x.view().at(k % 40, k) = k % 2 ? largest : -largest;
  for (std::int64_t k = 0; k < 70; ++k) *test.x.view().at(39, k) = k == 0 ? largest : 0;
  for (std::int64_t n = 0; n < 45; ++n) *test.weight.view().at(0, n) = std::ldexp(1.0f, -static_cast<int>(n));
  const std::vector<float> got = test.Run();
  const auto expected = reference::Linear(test.x.read(), test.weight.read(), test.bias.data());
  std::int64_t finite = 0, infinite = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    // If the sum of magnitudes is finite, so are all partial sums in any order.
    double magnitude = 0;
    for (std::int64_t k = 0; k < 70; ++k) {
      magnitude += std::abs(static_cast<double>(*test.x.view().at(static_cast<std::int64_t>(i / 45), k)) *
                            static_cast<double>(*test.weight.view().at(k, static_cast<std::int64_t>(i % 45))));
    }
    if (magnitude < 0.999 * static_cast<double>(largest)) {
      EXPECT_NEAR(got[i], expected[i], 1e-5 * magnitude + 1e-5) << i;
      ++finite;
    }
    infinite += std::isinf(got[i]);
  }
  EXPECT_GT(finite, 100);
  EXPECT_GT(infinite, 100);
  if (HasBf16()) {
    SetTarget("avx512");
    const std::vector<float> plainly = test.Run();
    SetTarget(GetParam());
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(std::isfinite(got[i]), std::isfinite(plainly[i])) << i;
      EXPECT_TRUE(std::isfinite(got[i]) || std::memcmp(&got[i], &plainly[i], sizeof(float)) == 0) << i;
    }
  }
}

// A NaN of all ones, whose bits would carry over to 0 if rounded like a number.
TEST_P(LinearTest, NaNOfAllOnes) {
  for (const std::uint32_t bits : {0x7FFFFFFFu, 0xFFFFFFFFu, 0x7F800001u, 0xFF80FFFFu}) {
    for (const Precision precision : {Precision::kHighest, Precision::kHigh, Precision::kMedium}) {
      const Case<float> test(40, 64, 64);
      std::memcpy(test.x.view().at(7, 40), &bits, sizeof(bits));
      std::memcpy(test.weight.view().at(3, 20), &bits, sizeof(bits));
      const std::vector<float> got = test.Run(true, precision);
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 64 == 7 || i % 64 == 20) << i;
    }
  }
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
