// The accuracy of linear: levels of precision, extreme magnitudes, cancellation, subnormal numbers, overflow and NaN.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "linear_case.h"

namespace headwise::testing {
namespace {

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

HEADWISE_ON_EVERY_TARGET(LinearTest);

}  // namespace
}  // namespace headwise::testing
