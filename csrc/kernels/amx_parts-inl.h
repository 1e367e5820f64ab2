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
#include <type_traits>

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
constexpr int kTileBytes = kTileSize * 4;
constexpr int64_t kTileRowBytes = amx::kTileWords * 4;

// Words of a chunk of 32 rows, and instructions on tiles to multiply it with another.
template <int kParts>
constexpr int kChunkSize = kParts * 2 * kTileSize;
template <int kParts>
constexpr int kInstructions = kParts == 3   ? 38
                              : kParts == 2 ? 20
                                            : 8;

constexpr int64_t Chunks(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// The parts of x (numbers 0 to 15 of a chunk) and y (16 to 31), a vector of words each, part_stride words apart. With
// kCut they are cut off, not rounded: of three parts that is as exact. The products left out are larger then, but as
// often positive as negative if the other number's parts are rounded.
template <int kParts, bool kCut = false, class V>
HWY_INLINE void StoreParts(V x, V y, std::uint32_t* to, int64_t part_stride) {
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

// The vector unit's work alongside products of tiles. Before each chunk Begin(unit) says whether there is any; then
// At<n>(unit, state) does the n-th of kInstructions portions of a unit. Unit has the places it works on, State what the
// portions hand on to each other: both are local variables, so that they stay in registers.
//
// Here it is none, and eight instructions that do nothing take its place: where the core is shared with another thread,
// a chunk with three parts takes 370 ns with them and 570 without (180 either way where it is not; 2.2 GHz).
struct NoWork {
  struct Unit {};
  struct State {};
  bool Begin(Unit&) const { return false; }
  template <int kPortion>
  static HWY_INLINE void At(const Unit&, State&) {
    asm volatile("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop");
  }
};

// A chunk's products: tiles 0 to 3 += A B. Loads are what limits, so from one product of parts to the next only one of
// the two parts changes, and each of its tiles is loaded as soon as the product has read it; the next chunk of B is
// fetched into the first-level cache meanwhile. After each instruction comes a portion of the vector unit's work.
// Without kLower the lower tiles, 2 and 3, are left out.
template <int kParts, bool kLower, class Work>
class ChunkProduct {
 public:
  using Unit = typename Work::Unit;

  ChunkProduct(const std::uint32_t* a, const std::uint32_t* b, const Unit& unit) : a_(a), b_(b), unit_(unit) {}

  HWY_INLINE void operator()() {
    Load<kA, 0, 0, 0>();
    Load<kB, 0, kParts - 1, 1>();
    Load<kA, 1, 0, 2>();
    Load<kB, 1, kParts - 1, 3>();
    if constexpr (kParts == 2) {
      MultiplyThenLoad<0, kB, 0>();
      MultiplyThenLoad<1, kA, 1>();
    }
    if constexpr (kParts == 3) {
      MultiplyThenLoad<0, kB, 1>();
      MultiplyThenLoad<1, kA, 1>();
      MultiplyThenLoad<2, kB, 0>();
      MultiplyThenLoad<3, kA, 2>();
      MultiplyThenLoad<4, kA, 0>();
    }
    constexpr int kLast = kProducts - 1, kFirst = kInstructions<kParts> - 4;
    MultiplyAdd<0, 0, kFirst, 4 * kLast>();
    MultiplyAdd<0, 1, kFirst + 1, 4 * kLast + 1>();
    MultiplyAdd<1, 0, kFirst + 2, 4 * kLast + 2>();
    MultiplyAdd<1, 1, kFirst + 3, 4 * kLast + 3>();
  }

 private:
  enum Operand { kA, kB };

  static constexpr int kProducts = kParts * (kParts + 1) / 2;
  static constexpr int kLines = kParts * 2 * amx::kTileRows;  // of the next chunk of B

  template <int kPortion>
  HWY_INLINE void Portion() {
    Work::template At<kPortion>(unit_, state_);
  }

  // Product kProduct of two parts; for the next one kPart of an operand, whose first tile the first two instructions
  // read.
  template <int kProduct, Operand kOf, int kPart>
  HWY_INLINE void MultiplyThenLoad() {
    constexpr int kFirst = 4 + 6 * kProduct, kRow = kOf == kA ? 0 : 1;
    MultiplyAdd<0, 0, kFirst, 4 * kProduct>();
    MultiplyAdd<kRow, 1 - kRow, kFirst + 1, 4 * kProduct + 1>();
    Load<kOf, 0, kPart, kFirst + 2>();
    MultiplyAdd<1 - kRow, kRow, kFirst + 3, 4 * kProduct + 2>();
    MultiplyAdd<1, 1, kFirst + 4, 4 * kProduct + 3>();
    Load<kOf, 1, kPart, kFirst + 5>();
  }

  // A part of rows (A) or columns (B) 0 to 15, or of 16 to 31.
  template <Operand kOf, int kHalf, int kPart, int kPortion>
  HWY_INLINE void Load() {
    if constexpr (kLower || kOf == kB || kHalf == 0) {
      amx::Load<4 + 2 * kOf + kHalf, (2 * kPart + kHalf) * kTileBytes>(kOf == kA ? a_ : b_, kTileRowBytes);
    }
    Portion<kPortion>();
  }

  // The kNth multiply-add fetches its share of the next chunk.
  template <int kRow, int kColumn, int kPortion, int kNth>
  HWY_INLINE void MultiplyAdd() {
    if constexpr (kLower || kRow == 0) amx::MultiplyAdd<2 * kRow + kColumn, 4 + kRow, 6 + kColumn>();
    Fetch<kNth * kLines / (4 * kProducts), (kNth + 1) * kLines / (4 * kProducts)>();
    Portion<kPortion>();
  }

  template <int kLine, int kEnd>
  HWY_INLINE void Fetch() const {
    if constexpr (kLine < kEnd) {
      amx::Fetch<(kChunkSize<kParts> + kLine * amx::kTileWords) * 4>(b_);
      Fetch<kLine + 1, kEnd>();
    }
  }

  const std::uint32_t* const a_;
  const std::uint32_t* const b_;
  const Unit unit_;
  typename Work::State state_;
};

// Tiles 0 to 3 = A B over `chunks` chunks of the depth. A and B: [chunk][part][2 tiles]. With fewer than 17 rows the
// lower tiles, 2 and 3, are left out, and nothing goes on alongside.
template <int kParts, class Work = const NoWork>
HWY_INLINE void MultiplyChunks(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                               Work&& work = Work()) {
  using Alongside = std::remove_cv_t<std::remove_reference_t<Work>>;
  amx::Zero<0>(), amx::Zero<1>(), amx::Zero<2>(), amx::Zero<3>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += kChunkSize<kParts>, b += kChunkSize<kParts>) {
    typename Alongside::Unit unit;
    if (!lower) {
      ChunkProduct<kParts, false, NoWork>(a, b, {})();
    } else if (work.Begin(unit)) {
      ChunkProduct<kParts, true, Alongside>(a, b, unit)();
    } else {
      ChunkProduct<kParts, true, NoWork>(a, b, {})();
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
HWY_INLINE hn::Vec<Tag<float>> LoadPart(const T* row, int64_t at, int64_t n) {
  const Tag<float> d;
  if (at + kLanes<float> <= n) return LoadWide(d, row + at);
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
