// Products of numbers in parts of bfloat16 (parts-inl.h) on tiles (amx.h), to the accuracy of float32.
//
// Called by attention_amx.cc and linear_amx.cc.

#if defined(HEADWISE_MATMUL_BF16_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_MATMUL_BF16_AMX_INL_H_
#undef HEADWISE_MATMUL_BF16_AMX_INL_H_
#else
#define HEADWISE_MATMUL_BF16_AMX_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "matmul/amx.h"
#include "matmul/bf16_policy.h"
#include "matmul/bf16_split-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

constexpr int kTileBytes = kTileSize * 4;
constexpr int64_t kTileRowBytes = kTileSide * 4;

// Instructions on tiles to multiply a chunk of 32 rows with one of 32 columns.
template <int kParts>
constexpr int kInstructions = kParts == 3   ? 38
                              : kParts == 2 ? 20
                                            : 8;

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

  static constexpr int kProducts = Bf16Products(kParts);
  static constexpr int kLines = kParts * 2 * kTileSide;  // of the next chunk of B

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
      amx::Fetch<(kChunkSize<kParts> + kLine * kTileSide) * 4>(b_);
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
  amx::Store<1>(to + kTileSide, row_bytes);
  if (lower) {
    amx::Store<2>(to + kTileSide * stride, row_bytes);
    amx::Store<3>(to + kTileSide * stride + kTileSide, row_bytes);
  }
}

struct AmxBackend {
  static constexpr MatmulBackend kBackend = MatmulBackend::kAmx;
  static constexpr int kStages = 2;  // tiles of scores at once: the vector unit works on one meanwhile
  static constexpr bool kFinishes = false;

  using Scope = amx::Tiles;

  // to[32, 32] = A B over `chunks` chunks of the depth; rows of `to` are `stride` apart. Without `lower` only the first
  // 16 rows.
  template <int kParts, class Work = const NoWork>
  static HWY_INLINE void Multiply(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower, float* to,
                                  int64_t stride, Work&& work = Work()) {
    MultiplyChunks<kParts>(a, b, chunks, lower, work);
    StoreTiles(to, stride, lower);
  }

  // The same; whatever is next, the next chunk of B is fetched.
  template <int kParts>
  static HWY_INLINE void MultiplyAndFetch(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                                          float* to, int64_t stride, const std::uint32_t* /*next*/) {
    Multiply<kParts>(a, b, chunks, lower, to, stride);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
