// Matrix products in bf16 split (bf16_split-inl.h) on AMX tiles (amx.h).
//
// Blocking: 32 rows by 32 columns in four tiles of sums, one chunk of the depth at a time. Used by attention/backends
// and linear/kernel_amx.cc.

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

// Tile instructions for the product of a chunk of 32 rows with one of 32 columns.
template <int kTerms>
constexpr int kInstructions = kTerms == 3   ? 38
                              : kTerms == 2 ? 20
                                            : 8;

// Work is vector code interleaved with tile products, so that both units are busy. Before each chunk, Begin(unit)
// returns whether there is work; then At<n>(unit, state) does portion n of kInstructions of it. Unit holds pointers,
// State holds values passed from one portion to the next; both are local variables, to stay in registers.
//
// NoWork executes eight NOPs per portion: with another thread on the same core, a chunk of three terms takes 370 ns
// with the NOPs and 570 ns without (180 ns either way on a core of its own; 2.2 GHz).
struct NoWork {
  struct Unit {};
  struct State {};
  bool Begin(Unit&) const { return false; }
  template <int kPortion>
  static HWY_INLINE void At(const Unit&, State&) {
    asm volatile("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop");
  }
};

// The products of one chunk: tiles 0 to 3 += A B. Tile loads are the bottleneck, so consecutive products of terms
// differ in one of the two terms only, and its tiles are loaded as soon as the previous product has read them. The next
// chunk of B is prefetched into L1, and a portion of Work follows each tile instruction. Without kLower, tiles 2 and 3
// are skipped.
template <int kTerms, bool kLower, class Work>
class ChunkProduct {
 public:
  using Unit = typename Work::Unit;

  ChunkProduct(const std::uint32_t* a, const std::uint32_t* b, const Unit& unit) : a_(a), b_(b), unit_(unit) {}

  HWY_INLINE void operator()() {
    Load<kA, 0, 0, 0>();
    Load<kB, 0, kTerms - 1, 1>();
    Load<kA, 1, 0, 2>();
    Load<kB, 1, kTerms - 1, 3>();
    if constexpr (kTerms == 2) {
      MultiplyThenLoad<0, kB, 0>();
      MultiplyThenLoad<1, kA, 1>();
    }
    if constexpr (kTerms == 3) {
      MultiplyThenLoad<0, kB, 1>();
      MultiplyThenLoad<1, kA, 1>();
      MultiplyThenLoad<2, kB, 0>();
      MultiplyThenLoad<3, kA, 2>();
      MultiplyThenLoad<4, kA, 0>();
    }
    constexpr int kLast = kProducts - 1, kFirst = kInstructions<kTerms> - 4;
    MultiplyAdd<0, 0, kFirst, 4 * kLast>();
    MultiplyAdd<0, 1, kFirst + 1, 4 * kLast + 1>();
    MultiplyAdd<1, 0, kFirst + 2, 4 * kLast + 2>();
    MultiplyAdd<1, 1, kFirst + 3, 4 * kLast + 3>();
  }

 private:
  enum Operand { kA, kB };

  static constexpr int kProducts = Bf16Products(kTerms);
  static constexpr int kLines = kTerms * 2 * kTileSide;  // of the next chunk of B

  template <int kPortion>
  HWY_INLINE void Portion() {
    Work::template At<kPortion>(unit_, state_);
  }

  // Product number kProduct, then the loads for the next one: term kTerm of operand kOf, whose first tile has been read
  // after the first two instructions.
  template <int kProduct, Operand kOf, int kTerm>
  HWY_INLINE void MultiplyThenLoad() {
    constexpr int kFirst = 4 + 6 * kProduct, kRow = kOf == kA ? 0 : 1;
    MultiplyAdd<0, 0, kFirst, 4 * kProduct>();
    MultiplyAdd<kRow, 1 - kRow, kFirst + 1, 4 * kProduct + 1>();
    Load<kOf, 0, kTerm, kFirst + 2>();
    MultiplyAdd<1 - kRow, kRow, kFirst + 3, 4 * kProduct + 2>();
    MultiplyAdd<1, 1, kFirst + 4, 4 * kProduct + 3>();
    Load<kOf, 1, kTerm, kFirst + 5>();
  }

  // A term of rows (A) or columns (B) 0 to 15 (kHalf 0), or 16 to 31 (kHalf 1).
  template <Operand kOf, int kHalf, int kTerm, int kPortion>
  HWY_INLINE void Load() {
    if constexpr (kLower || kOf == kB || kHalf == 0) {
      amx::Load<4 + 2 * kOf + kHalf, (2 * kTerm + kHalf) * kTileBytes>(kOf == kA ? a_ : b_, kTileRowBytes);
    }
    Portion<kPortion>();
  }

  // Tile multiply-add number kNth also prefetches its share of the next chunk.
  template <int kRow, int kColumn, int kPortion, int kNth>
  HWY_INLINE void MultiplyAdd() {
    if constexpr (kLower || kRow == 0) amx::MultiplyAdd<2 * kRow + kColumn, 4 + kRow, 6 + kColumn>();
    Fetch<kNth * kLines / (4 * kProducts), (kNth + 1) * kLines / (4 * kProducts)>();
    Portion<kPortion>();
  }

  template <int kLine, int kEnd>
  HWY_INLINE void Fetch() const {
    if constexpr (kLine < kEnd) {
      amx::Fetch<(kChunkSize<kTerms> + kLine * kTileSide) * 4>(b_);
      Fetch<kLine + 1, kEnd>();
    }
  }

  const std::uint32_t* const a_;
  const std::uint32_t* const b_;
  const Unit unit_;
  typename Work::State state_;
};

// Tiles 0 to 3 = A B over `chunks` chunks of the depth. A and B: [chunk][term][2 tiles]. Without `lower` (at most 16
// rows), tiles 2 and 3 are skipped, and Work is not run.
template <int kTerms, class Work = const NoWork>
HWY_INLINE void MultiplyChunks(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                               Work&& work = Work()) {
  using Interleaved = std::remove_cv_t<std::remove_reference_t<Work>>;
  amx::Zero<0>(), amx::Zero<1>(), amx::Zero<2>(), amx::Zero<3>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += kChunkSize<kTerms>, b += kChunkSize<kTerms>) {
    typename Interleaved::Unit unit;
    if (!lower) {
      ChunkProduct<kTerms, false, NoWork>(a, b, {})();
    } else if (work.Begin(unit)) {
      ChunkProduct<kTerms, true, Interleaved>(a, b, unit)();
    } else {
      ChunkProduct<kTerms, true, NoWork>(a, b, {})();
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
  static constexpr int kStages = 2;  // blocks of scores in flight: one in the tiles, one in the vector unit
  static constexpr bool kFinishes = false;

  using Scope = amx::Tiles;

  // to[32, 32] = A B over `chunks` chunks of the depth; rows of `to` are `stride` apart. Without `lower`, only the
  // first 16 rows.
  template <int kTerms, class Work = const NoWork>
  static HWY_INLINE void Multiply(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower, float* to,
                                  int64_t stride, Work&& work = Work()) {
    MultiplyChunks<kTerms>(a, b, chunks, lower, work);
    StoreTiles(to, stride, lower);
  }

  // Multiply; the chunk that follows B is prefetched in any case.
  template <int kTerms>
  static HWY_INLINE void MultiplyAndFetch(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                                          float* to, int64_t stride, const std::uint32_t* /*next*/) {
    Multiply<kTerms>(a, b, chunks, lower, to, stride);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
