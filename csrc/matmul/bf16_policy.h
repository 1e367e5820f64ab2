// When and how bf16 products replace products of float32: the number of terms for each element type and precision, and
// the shapes from which the bf16 backends are faster than FMA. Every such decision of linear and attention is made
// here.
//
// A number is split into `terms` bf16 values (bf16_split-inl.h), and a product of two numbers becomes the products of
// their terms i and j with i + j < terms:
//
//   terms  name     products  relative error of a product
//   1      BF16     1         2^-8
//   2      BF16X3   3         2^-16
//   3      BF16X6   6         2^-25
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/cpu_features.h"
#include "headwise/dtype.h"
#include "headwise/precision.h"

namespace headwise {

constexpr int Bf16Products(int terms) { return terms * (terms + 1) / 2; }

constexpr int MaxTerms(Precision precision) {
  return precision == Precision::kHighest ? 3 : precision == Precision::kHigh ? 2 : 1;
}

// Most terms for which the backend is faster than FMA. The 3 or 6 products of more terms take longer on kBf16Dot, whose
// instruction does twice the multiply-adds of an FMA, than one product of float32.
constexpr int MaxTerms(MatmulBackend backend) {
  return backend == MatmulBackend::kAmx ? 3 : backend == MatmulBackend::kBf16Dot ? 1 : 0;
}

// Most terms for which an operation has kernels. A bfloat16 is its own only term. The 11 bits of a float16 fit in two;
// linear uses the products of three, because they include low * low, up to 2^-16 of the product, which attention
// leaves out. float64 is never split.
template <typename T>
constexpr int kMaxLinearTerms = std::is_same_v<T, double>     ? 0
                                : std::is_same_v<T, BFloat16> ? 1
                                                              : 3;
template <typename T>
constexpr int kMaxAttentionTerms = std::is_same_v<T, Float16> ? 2 : kMaxLinearTerms<T>;

// Terms at a precision on a backend; 0: FMA. kBf16Dot has no kernels for float16.
template <typename T>
constexpr int Bf16Terms(MatmulBackend backend, Precision precision, int max_terms) {
  const int terms = std::min(MaxTerms(precision), max_terms);
  if (backend == MatmulBackend::kBf16Dot && std::is_same_v<T, Float16>) return 0;
  return terms <= MaxTerms(backend) ? terms : 0;
}
template <typename T>
constexpr int LinearTerms(MatmulBackend backend, Precision precision) {
  return Bf16Terms<T>(backend, precision, kMaxLinearTerms<T>);
}
template <typename T>
constexpr int AttentionTerms(MatmulBackend backend, Precision precision) {
  return Bf16Terms<T>(backend, precision, kMaxAttentionTerms<T>);
}

// Whether products of `terms` > 0 terms are faster than FMA, as measured: the more products, the larger the shape has
// to be. A function of shapes alone, so that a call's bits do not depend on anything else; linear decides the same for
// packed weights.
bool LinearBf16Pays(int terms, std::int64_t rows, std::int64_t depth, std::int64_t columns);

// `rows`: queries of all heads that share one key and value head.
bool AttentionBf16Pays(int terms, std::int64_t rows, std::int64_t keys, std::int64_t head_dim, std::int64_t value_dim);

// Whether the backward pass of attention multiplies queries with keys, and gradients with values, as pairs of bf16
// (DotMultiplier): for bfloat16, whose products are exact then. Processors with AMX have the instruction, too.
template <typename T>
bool BackwardUsesPairs(MatmulBackend backend) {
  return std::is_same_v<T, BFloat16> && backend != MatmulBackend::kFma && IsSupported(MatmulBackend::kBf16Dot);
}

// Rows of x up to which GEMV on weights read in place (linear/gemv-inl.h) is faster than the bf16 kernel of a bfloat16,
// which needs no splitting; for other types and backends see kMaxGemvRows.
constexpr std::int64_t kMaxBf16GemvRows = 8;

}  // namespace headwise
