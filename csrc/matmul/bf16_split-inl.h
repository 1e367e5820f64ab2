// Numbers in parts of bfloat16, which the processor multiplies faster than float32.
//
// A float32 has 24 bits, a bfloat16 8: x = x0 + x1 + x2 exactly, each the rest rounded to 8 bits. Of the nine products
// of such sums six count, those with i + j < 3; the others are below 2^-25 of x y. All six are sums of products over a
// longer depth, added up in float32 by the tile unit, the smallest first. With two parts three products are left
// (2^-16), with one part one (2^-8).
//
// Layout: 32 numbers of the depth are a chunk, whose n-th and (n + 16)-th share a 32-bit word: packing is shifts and
// masks. Each part of a chunk is a tile of 16 rows of 16 words, and all products take 2 x 2 tiles at a time: 32 rows by
// 32 columns.
//
// Who multiplies is a Unit: AmxBackend (amx_parts-inl.h) for up to three parts, DotBackend (dot_parts-inl.h) for one.
// Where a number's parts are subnormal (below 2^-110 in the third) they count as 0.
//
// Called by attention_parts-inl.h and linear_parts-inl.h.

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

// Numbers of the depth in a chunk, tiles, rows and columns of 2 x 2 tiles, words of a tile.
constexpr int kChunk = 32;
constexpr int kTileSide = 16;  // rows, and words of a row
constexpr int kSide = 2 * kTileSide;
constexpr int kTileSize = kTileSide * kTileSide;

// Words of a chunk of 32 rows.
template <int kParts>
constexpr int kChunkSize = kParts * 2 * kTileSize;

constexpr int64_t Chunks(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// The parts of x (numbers 0 to 15 of a chunk) and y (16 to 31), a vector of words each, part_stride words apart. With
// kCut they are cut off, not rounded: of three parts that is as exact. The products left out are larger then, but as
// often positive as negative if the other number's parts are rounded.
template <int kParts, bool kCut = false, class V>
HWY_INLINE void StoreSplit(V x, V y, std::uint32_t* to, int64_t part_stride) {
  const Tag<float> d;
  const Tag<std::uint32_t> bits;
  const auto upper = hn::Set(bits, 0xFFFF0000u), half = hn::Set(bits, kCut ? 0u : 0x8000u);
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    const auto x_top = hn::And(hn::Add(hn::BitCast(bits, x), half), upper);
    const auto y_top = hn::And(hn::Add(hn::BitCast(bits, y), half), upper);
    hn::StoreU(hn::Or(hn::ShiftRight<16>(x_top), y_top), bits, to + part * part_stride);
    x = hn::Sub(x, hn::BitCast(d, x_top));
    y = hn::Sub(y, hn::BitCast(d, y_top));
  }
}

// |x| as whole numbers, in the order of the numbers; those of Inf and NaN are greater than all others.
template <class V>
HWY_INLINE hn::Vec<Tag<std::int32_t>> Magnitudes(V x) {
  return hn::BitCast(Tag<std::int32_t>(), hn::Abs(x));
}

HWY_INLINE bool AllBelow(hn::Vec<Tag<std::int32_t>> magnitudes, float most) {
  const Tag<std::int32_t> d;
  return hn::AllTrue(d, hn::Lt(magnitudes, hn::BitCast(d, hn::Set(Tag<float>(), most))));
}

// to[i] = the i-th vector's lanes reduced by `join`.
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

// Numbers [at, at + 16) of a row of n; 0 beyond its end.
template <typename T>
HWY_INLINE hn::Vec<Tag<float>> LoadPadded(const T* row, int64_t at, int64_t n) {
  const Tag<float> d;
  if (at + kLanes<float> <= n) return LoadWide(d, row + at);
  return at < n ? FirstLanes{n - at}.Load(d, row + at) : hn::Zero(d);
}

// out[k][i] = in[i][k], a tile.
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
