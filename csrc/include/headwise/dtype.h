// The element types of arrays. 16-bit types are storage types: every operation computes in their accumulator type.
#pragma once

#include <cstdint>
#include <type_traits>

namespace headwise {

// IEEE 754 binary16: 1 sign bit, 5 exponent bits and 10 mantissa bits.
struct Float16 {
  std::uint16_t bits;
};

// The upper 16 bits of a binary32: 1 sign bit, 8 exponent bits and 7 mantissa bits.
struct BFloat16 {
  std::uint16_t bits;
};

template <typename T>
constexpr bool kIs16Bit = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;

// The type that arrays of T are computed in: float for 16-bit types, otherwise T itself.
template <typename T>
using Accumulator = std::conditional_t<kIs16Bit<T>, float, T>;

}  // namespace headwise
