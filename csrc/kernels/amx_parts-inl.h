// Numbers in parts of bfloat16, and products of them on tiles (amx.h), to the accuracy of float32.
//
// A float32 has 24 bits, a bfloat16 8: x = x0 + x1 + x2 exactly, each the rest rounded to 8 bits. Of the nine products
// of such sums six count, those with i + j < 3; the others are below 2^-25 of x y. All six are sums of products over a
// longer depth, added up in float32 by the tile unit, the smallest first. With two parts three products are left
// (2^-16), with one part one (2^-8).
//
// Layout: 32 numbers of the depth are a chunk, whose n-th and (n + 16)-th share a 32-bit word: packing is shifts and
// masks. Each part of a chunk is a tile of 1 KB, and all products take 2 x 2 tiles at a time: 32 rows by 32 columns.
//
// Where a number's parts are subnormal (below 2^-110 in the third) they count as 0.
//
// Called by attention_amx-inl.h and linear_amx-inl.h.

#if defined(HEADWISE_KERNELS_AMX_PARTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_AMX_PARTS_INL_H_
#undef HEADWISE_KERNELS_AMX_PARTS_INL_H_
#else
#define HEADWISE_KERNELS_AMX_PARTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/amx.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/rows-inl.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Numbers of the depth in a chunk, rows and columns of 2 x 2 tiles, words of a tile.
constexpr int kChunk = 32;
constexpr int kSide = 2 * amx::kTileRows;
constexpr int kTileSize = amx::kTileRows * amx::kTileWords;

template <int kParts>
constexpr int64_t kChunkSize = kParts * 2 * kTileSize;

constexpr int64_t Chunks(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// The parts of x (numbers 0 to 15 of a chunk) and y (16 to 31), a vector of words each, part_stride words apart.
template <int kParts, class V>
HWY_INLINE void StoreParts(V x, V y, std::uint32_t* to, int64_t part_stride) {
  const Tag<float> d;
  const Tag<std::uint32_t> bits;
  const auto upper = hn::Set(bits, 0xFFFF0000u), half = hn::Set(bits, 0x8000u);
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    const auto x_top = hn::And(hn::Add(hn::BitCast(bits, x), half), upper);
    const auto y_top = hn::And(hn::Add(hn::BitCast(bits, y), half), upper);
    hn::StoreU(hn::Or(hn::ShiftRight<16>(x_top), y_top), bits, to + part * part_stride);
    x = hn::Sub(x, hn::BitCast(d, x_top));
    y = hn::Sub(y, hn::BitCast(d, y_top));
  }
}

// Tiles 0 to 3 = A B over `chunks` chunks of the depth. A and B: [chunk][part][2 tiles]. With fewer than 17 rows the
// lower tiles, 2 and 3, are left out.
template <int kParts>
HWY_INLINE void MultiplyChunks(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower) {
  constexpr int64_t kRowBytes = amx::kTileWords * 4;
  amx::Zero<0>(), amx::Zero<1>(), amx::Zero<2>(), amx::Zero<3>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += kChunkSize<kParts>, b += kChunkSize<kParts>) {
    // The smallest products first; a part of B is loaded once.
#pragma GCC unroll 3
    for (int j = kParts - 1; j >= 0; --j) {
      amx::Load<6>(b + j * 2 * kTileSize, kRowBytes);
      amx::Load<7>(b + (j * 2 + 1) * kTileSize, kRowBytes);
#pragma GCC unroll 3
      for (int i = kParts - 1 - j; i >= 0; --i) {
        amx::Load<4>(a + i * 2 * kTileSize, kRowBytes);
        amx::MultiplyAdd<0, 4, 6>();
        amx::MultiplyAdd<1, 4, 7>();
        if (!lower) continue;
        amx::Load<5>(a + (i * 2 + 1) * kTileSize, kRowBytes);
        amx::MultiplyAdd<2, 5, 6>();
        amx::MultiplyAdd<3, 5, 7>();
      }
    }
  }
}

// to[32, 32] = tiles 0 to 3, rows `stride` floats apart.
HWY_INLINE void StoreTiles(float* to, int64_t stride, bool lower) {
  const int64_t row_bytes = stride * 4;
  amx::Store<0>(to, row_bytes);
  amx::Store<1>(to + amx::kTileRows, row_bytes);
  if (lower) {
    amx::Store<2>(to + amx::kTileRows * stride, row_bytes);
    amx::Store<3>(to + amx::kTileRows * stride + amx::kTileRows, row_bytes);
  }
}

// Whether bfloat16 parts can hold every number of a vector.
template <class V>
HWY_INLINE bool Splits(V x) {
  const Tag<float> d;
  return hn::AllTrue(d, hn::Lt(hn::Abs(x), hn::Set(d, 0x1p126f)));
}

// Numbers [at, at + 16) of a row of n; 0 beyond its end.
HWY_INLINE hn::Vec<Tag<float>> LoadPart(const float* row, int64_t at, int64_t n) {
  const Tag<float> d;
  if (at + kLanes<float> <= n) return hn::LoadU(d, row + at);
  return at < n ? FirstLanes{n - at}.Load(d, row + at) : hn::Zero(d);
}

// out[k][i] = in[i][k], a tile.
HWY_INLINE void TransposeTile(const std::uint32_t* in, std::uint32_t* out) {
  for (int64_t k = 0; k < amx::kTileWords; k += 4) {
    TransposeBlocks(Tag<float>(), reinterpret_cast<const float*>(in) + k, amx::kTileWords,
                    reinterpret_cast<float*>(out) + k * amx::kTileRows, amx::kTileRows);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
