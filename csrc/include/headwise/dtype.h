// Numbers of 16 bits, in which arrays are kept; everything is computed in the type of their accumulator.
#pragma once

#include <cstdint>
#include <type_traits>

namespace headwise {

// IEEE 754 binary16: 1 sign, 5 exponent and 10 mantissa bits.
struct Float16 {
  std::uint16_t bits;
};

// The upper half of a binary32: 1 sign, 8 exponent and 7 mantissa bits.
struct BFloat16 {
  std::uint16_t bits;
};

template <typename T>
constexpr bool kIs16Bit = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;

// What arrays of T are computed in: float for those of 16 bits, else T itself.
template <typename T>
using Accumulator = std::conditional_t<kIs16Bit<T>, float, T>;

}  // namespace headwise
