// Exact conversions of 16-bit types, straight from the definitions of their formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "headwise/dtype.h"

namespace headwise::reference {

// Mantissa bits, and the exponent of the smallest normal number (1 - bias).
template <typename T>
struct Format16;
template <>
struct Format16<Float16> {
  static constexpr int kMantissaBits = 10, kMinExponent = -14;
};
template <>
struct Format16<BFloat16> {
  static constexpr int kMantissaBits = 7, kMinExponent = -126;
};

// The value of a bit pattern.
template <typename T>
double Decode(int bits) {
  using Format = Format16<T>;
  const int mantissa = bits & ((1 << Format::kMantissaBits) - 1);
  const int exponent = (bits & 0x7FFF) >> Format::kMantissaBits;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0x7FFF >> Format::kMantissaBits) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int digits = exponent == 0 ? mantissa : mantissa + (1 << Format::kMantissaBits);
  return sign * std::ldexp(digits, std::max(exponent, 1) - 1 + Format::kMinExponent - Format::kMantissaBits);
}

template <typename T>
double ToDouble(T number) {
  if constexpr (kIs16Bit<T>) {
    // A table: decoding every number took a third of the time of the attention tests.
    static const std::vector<double> numbers = [] {
      std::vector<double> all;
      all.reserve(1 << 16);
      for (int bits = 0; bits < 1 << 16; ++bits) all.push_back(Decode<T>(bits));
      return all;
    }();
    return numbers[number.bits];
  } else {
    return static_cast<double>(number);
  }
}

// x rounded to T, to nearest even.
template <typename T>
T Nearest(double x) {
  if constexpr (kIs16Bit<T>) {
    using Format = Format16<T>;
    constexpr std::int64_t kInfinity = 0x7FFF >> Format::kMantissaBits << Format::kMantissaBits;
    const int sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return {static_cast<std::uint16_t>(kInfinity + (1 << (Format::kMantissaBits - 1)))};
    std::int64_t bits = 0;
    if (std::isinf(x)) bits = kInfinity;
    if (std::isfinite(x) && x != 0) {
      const int exponent = std::max(std::ilogb(x), Format::kMinExponent);
      const double units = std::nearbyint(std::ldexp(std::abs(x), Format::kMantissaBits - exponent));
      // The leading 1 of a normal mantissa increments the exponent field.
      bits = (static_cast<std::int64_t>(exponent - Format::kMinExponent) << Format::kMantissaBits) +
             static_cast<std::int64_t>(units);
    }
    return {static_cast<std::uint16_t>(sign + std::min(bits, kInfinity))};
  } else {
    return static_cast<T>(x);
  }
}

}  // namespace headwise::reference
