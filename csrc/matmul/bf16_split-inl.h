// The bf16 split: float32 as a sum of up to three bfloat16 terms, whose products are faster than those of float32.
//
// A float32 has 24 significant bits, a bfloat16 8, so x = x0 + x1 + x2 exactly, where each term is the remainder of the
// previous ones rounded to 8 bits. Of the nine products of two such sums, the six with i + j < 3 are computed; the
// others are below 2^-25 of x y. All are dot products over the depth, summed in float32, the smallest first. Two terms
// need three products (relative error 2^-16), one term needs one (2^-8). Terms that are subnormal (below 2^-110 for the
// third) count as 0. matmul/bf16_policy.h decides the number of terms.
//
// Layout: 32 consecutive elements of the depth are a chunk. Element n and element n + 16 share a 32-bit word, so
// packing is shifts and masks. Each term of a chunk is a tile of 16 rows of 16 words, and products take 2 x 2 tiles at
// a time: 32 rows by 32 columns.
//
// Multiplied by a matmul backend: AmxBackend (bf16_amx-inl.h), up to three terms, or DotBackend (bf16_dot-inl.h), one.
// Used by attention/backends/bf16-inl.h and linear/bf16-inl.h.

#if defined(HEADWISE_MATMUL_BF16_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_MATMUL_BF16_SPLIT_INL_H_
#undef HEADWISE_MATMUL_BF16_SPLIT_INL_H_
#else
#define HEADWISE_MATMUL_BF16_SPLIT_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "matmul/bf16_support.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// kChunk: elements of the depth in a chunk. kSide: rows and columns of 2 x 2 tiles. kTileSize: words of a tile.
constexpr int kChunk = 32;
constexpr int kTileSide = 16;  // rows, and words of a row
constexpr int kSide = 2 * kTileSide;
constexpr int kTileSize = kTileSide * kTileSide;

// Words of a chunk of 32 rows, all terms.
template <int kTerms>
constexpr int kChunkSize = kTerms * 2 * kTileSize;

constexpr int64_t Chunks(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// Stores the terms of x (elements 0 to 15 of a chunk) and y (16 to 31) as a vector of words per term, term_stride words
// apart. With kTruncate, terms are truncated instead of rounded. With three terms that is as accurate: the products
// that are left out are larger, but as often positive as negative if the other factor's terms are rounded.
template <int kTerms, bool kTruncate = false, class V>
HWY_INLINE void StoreSplit(V x, V y, std::uint32_t* to, int64_t term_stride) {
  const Tag<float> d;
  const Tag<std::uint32_t> bits;
  const auto upper = hn::Set(bits, 0xFFFF0000u), half = hn::Set(bits, kTruncate ? 0u : 0x8000u);
#pragma GCC unroll 3
  for (int term = 0; term < kTerms; ++term) {
    const auto x_top = hn::And(hn::Add(hn::BitCast(bits, x), half), upper);
    const auto y_top = hn::And(hn::Add(hn::BitCast(bits, y), half), upper);
    hn::StoreU(hn::Or(hn::ShiftRight<16>(x_top), y_top), bits, to + term * term_stride);
    x = hn::Sub(x, hn::BitCast(d, x_top));
    y = hn::Sub(y, hn::BitCast(d, y_top));
  }
}

// The bits of |x| as integers, which are ordered like |x|, with Inf and NaN above all others.
template <class V>
HWY_INLINE hn::Vec<Tag<std::int32_t>> Magnitudes(V x) {
  return hn::BitCast(Tag<std::int32_t>(), hn::Abs(x));
}

HWY_INLINE bool AllBelow(hn::Vec<Tag<std::int32_t>> magnitudes, float limit) {
  const Tag<std::int32_t> d;
  return hn::AllTrue(d, hn::Lt(magnitudes, hn::BitCast(d, hn::Set(Tag<float>(), limit))));
}

// to[i] = the lanes of vector i reduced by `join`.
template <class V, class Join>
HWY_INLINE void Reduce4(V v0, V v1, V v2, V v3, const Join& join, float* to) {
  const Tag<float> d;
  const hn::Repartition<double, Tag<float>> pairs;
  const auto v01 = join(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
  const auto v23 = join(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
  const auto low = hn::InterleaveLower(pairs, hn::BitCast(pairs, v01), hn::BitCast(pairs, v23));
  const auto high = hn::InterleaveUpper(pairs, hn::BitCast(pairs, v01), hn::BitCast(pairs, v23));
  const auto blocks = join(hn::BitCast(d, low), hn::BitCast(d, high));
  const hn::Half<Tag<float>> half;
  const hn::Half<decltype(half)> quarter;
  const auto two = join(hn::LowerHalf(half, blocks), hn::UpperHalf(half, blocks));
  hn::StoreU(join(hn::LowerHalf(quarter, two), hn::UpperHalf(quarter, two)), quarter, to);
}

// Elements [at, at + 16) of a row of n; 0 beyond its end.
template <typename T>
HWY_INLINE hn::Vec<Tag<float>> LoadPadded(const T* row, int64_t at, int64_t n) {
  const Tag<float> d;
  if (at + kLanes<float> <= n) return LoadWide(d, row + at);
  return at < n ? FirstLanes{n - at}.Load(d, row + at) : hn::Zero(d);
}

// out[k][i] = in[i][k] for one tile.
HWY_INLINE void TransposeTile(const std::uint32_t* in, std::uint32_t* out) {
  for (int64_t k = 0; k < kTileSide; k += 4) {
    TransposeBlocks(Tag<float>(), reinterpret_cast<const float*>(in) + k, kTileSide,
                    reinterpret_cast<float*>(out) + k * kTileSide, kTileSide);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
