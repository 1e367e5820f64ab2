// What the numbers of halves are and which one is nearest, by the definition of their formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "headwise/dtype.h"

namespace headwise::reference {

// Bits of the mantissa, and the exponent of the least normal number, which is the bias less 1, negated.
template <typename T>
struct HalfFormat;
template <>
struct HalfFormat<Float16> {
  static constexpr int kMantissaBits = 10, kLeastExponent = -14;
};
template <>
struct HalfFormat<BFloat16> {
  static constexpr int kMantissaBits = 7, kLeastExponent = -126;
};

// What the bits of a half mean.
template <typename T>
double Decode(int bits) {
  using Format = HalfFormat<T>;
  const int mantissa = bits & ((1 << Format::kMantissaBits) - 1);
  const int exponent = (bits & 0x7FFF) >> Format::kMantissaBits;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x7FFF >> Format::kMantissaBits) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int digits = exponent == 0 ? mantissa : mantissa + (1 << Format::kMantissaBits);
  return sign * std::ldexp(digits, std::max(exponent, 1) - 1 + Format::kLeastExponent - Format::kMantissaBits);
}

template <typename T>
double ToDouble(T number) {
  if constexpr (kIs16Bit<T>) {
    // All of them once: decoding anew took a third of the time of the tests of attention.
    static const std::vector<double> numbers = [] {
      std::vector<double> all;
      for (int bits = 0; bits < 1 << 16; ++bits) all.push_back(Decode<T>(bits));
      return all;
    }();
    return numbers[number.bits];
  } else {
    return static_cast<double>(number);
  }
}

// The number of T nearest to x, the even one of two.
template <typename T>
T Nearest(double x) {
  if constexpr (kIs16Bit<T>) {
    using Format = HalfFormat<T>;
    constexpr std::int64_t kInfinity = 0x7FFF >> Format::kMantissaBits << Format::kMantissaBits;
    const int sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return {static_cast<std::uint16_t>(kInfinity + (1 << (Format::kMantissaBits - 1)))};
    std::int64_t bits = 0;
    if (std::isinf(x)) bits = kInfinity;
    if (std::isfinite(x) && x != 0) {
      const int exponent = std::max(std::ilogb(x), Format::kLeastExponent);
      const double units = std::nearbyint(std::ldexp(std::abs(x), Format::kMantissaBits - exponent));
      // The leading digit of a normal number is the 1 that its exponent field lacks.
      bits = (static_cast<std::int64_t>(exponent - Format::kLeastExponent) << Format::kMantissaBits) +
             static_cast<std::int64_t>(units);
    }
    return {static_cast<std::uint16_t>(sign + std::min(bits, kInfinity))};
  } else {
    return static_cast<T>(x);
  }
}

}  // namespace headwise::reference
