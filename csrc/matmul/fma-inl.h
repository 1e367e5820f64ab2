// The register tile of every FMA product: C[rows, vectors] = start + A[rows, depth] * B[depth, vectors].
//
// The tile of C stays in registers while one row of B is loaded and one scalar of A is broadcast per row and step:
// rows * vectors fused multiply-adds for rows + vectors loads. 12 x 2 vectors fill the 32 registers of AVX-512 and NEON
// (24 sums, 2 of B, 1 of A), 6 x 2 the 16 of AVX2 and SSE4; 12 x 2 and 6 x 2 reach 97 % of the measured multiply-add
// peak with A and B in L1. Sums run over the depth in order, so a row's result does not depend on the tile it is in.
//
// Used by attention/backends/fma-inl.h (scores, and weights times values) and linear/kernel-inl.h.

#if defined(HEADWISE_MATMUL_FMA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_MATMUL_FMA_INL_H_
#undef HEADWISE_MATMUL_FMA_INL_H_
#else
#define HEADWISE_MATMUL_FMA_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using std::int64_t;

template <typename T>
using Tag = hn::ScalableTag<T>;

template <typename T>
constexpr int64_t kLanes = hn::MaxLanes(Tag<T>());

// Columns of a full tile, and width of the panels that B is packed in (pack-inl.h).
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

struct FusedMultiplyAdd {
  template <class V>
  static HWY_INLINE V MultiplyAdd(V a, V b, V sum) {
    return hn::MulAdd(a, b, sum);
  }
};

// A[r, k] is a[r * kRowStride + k * kDepthStride]: strides known to the compiler spare a register per row. Rows of B
// are b_stride apart. `start(r, v)` returns the initial value of a sum; `finish(r, sums)` is called with the final sums
// of a row. Multiplier::MultiplyAdd is the step; DotMultiplier (bf16_dot-inl.h) takes elements for pairs of bf16.
template <int kRows, int kVectors, int kRowStride, int kDepthStride, class Multiplier = FusedMultiplyAdd, typename T,
          class Start, class Finish>
HWY_INLINE void GemmTile(int64_t depth, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t b_stride,
                         const Start& start, const Finish& finish) {
  const Tag<T> d;
  hn::Vec<Tag<T>> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = start(r, v);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    hn::Vec<Tag<T>> b_k[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b_k[v] = hn::LoadU(d, b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto a_rk = hn::Set(d, a[r * kRowStride]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Multiplier::MultiplyAdd(a_rk, b_k[v], sum[r][v]);
    }
    a += kDepthStride;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) finish(r, sum[r]);
}

// The same for a packed panel B.
template <int kRows, int kVectors, int kRowStride, int kDepthStride, class Multiplier = FusedMultiplyAdd, typename T,
          class Start, class Finish>
HWY_INLINE void GemmTile(int64_t depth, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, const Start& start,
                         const Finish& finish) {
  GemmTile<kRows, kVectors, kRowStride, kDepthStride, Multiplier>(depth, a, b, kVectors * kLanes<T>, start, finish);
}

template <int kValue>
using Int = std::integral_constant<int, kValue>;

// Height of the smallest compiled tile that holds `rows` <= kTileRows rows.
constexpr int TileHeight(int64_t rows) {
  for (const int height : {kTileRows / 6, kTileRows / 3, kTileRows * 2 / 3}) {
    if (rows <= height) return height;
  }
  return kTileRows;
}

// Calls function(Int<height>) for a height returned by TileHeight.
template <class Function>
HWY_INLINE void WithHeight(int height, const Function& function) {
  switch (height) {
    case kTileRows:
      return function(Int<kTileRows>());
    case kTileRows * 2 / 3:
      return function(Int<kTileRows * 2 / 3>());
    case kTileRows / 3:
      return function(Int<kTileRows / 3>());
    default:
      return function(Int<kTileRows / 6>());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
