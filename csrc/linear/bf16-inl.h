// A block of x W + b in bf16 split (matmul/bf16_split-inl.h), on the matmul backend given as Backend.
//
// Blocking: a piece of the depth of W and one of x are packed as bf16 terms, in groups of 32 columns and tiles of 32
// rows, 24 KB each for any number of terms. A tile of rows stays in L1 while the groups stream from L2 or memory,
// prefetched one chunk ahead. Each piece is summed in the backend's accumulators; the sums of the pieces are added in
// float32 in scratch (rows of the output may be so far apart that few stay in a cache), and the bias is added last.
// AMX rounds once per tile product, 6 times per 32 numbers of the depth; a chain of FMAs rounds 32 times.
//
// A number that is NaN, or that rounds to Inf in its first term, makes every sum that contains it NaN or Inf, as does a
// sum that overflows. Such elements of the output are recomputed in float32 (linear/kernel-inl.h).
//
// Used by linear/kernel_amx.cc and linear/kernel_dot.cc.

#if defined(HEADWISE_LINEAR_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_BF16_INL_H_
#undef HEADWISE_LINEAR_BF16_INL_H_
#else
#define HEADWISE_LINEAR_BF16_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "linear/gemv-inl.h"
#include "linear/kernel-inl.h"
#include "linear/kernel.h"
#include "matmul/bf16_policy.h"
#include "matmul/bf16_split-inl.h"
#include "matmul/pack-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Groups of 32 columns, or tiles of 32 rows, that n of them fill.
constexpr int64_t Sides(int64_t n) { return (n + kSide - 1) / kSide; }

template <typename T, int kTerms, class Backend>
class Bf16Linear {
 public:
  static constexpr int64_t kPiece = 12 / kTerms;  // chunks

  Bf16Linear(Arena& arena, const LinearArgs<T>& args, const LinearBlock& block)
      : args_(args),
        block_(block),
        depth_(args.x.shape[1]),
        x_(arena.Allocate<std::uint32_t>(PieceSize())),
        weight_(arena.Allocate<std::uint32_t>(
            args.packed ? 0 : Sides(block.column_end - block.column_begin) * PieceSize())),
        sums_(arena.Allocate<float>(Chunks(depth_) <= kPiece
                                        ? 0
                                        : Sides(block.row_end - block.row_begin) *
                                              Sides(block.column_end - block.column_begin) * kSide * kSide)),
        product_(arena.Allocate<float>(kSide * kSide)),
        recomputed_(arena.Allocate<float>(kSide * kSide)),
        recompute_scratch_(arena.Allocate<std::byte>(static_cast<int64_t>(
            LinearScratchBytes<T>({args.x, {}, nullptr, {}, {}, nullptr}, {0, kSide, 0, kSide})))) {}

  void Run() const {
    [[maybe_unused]] const typename Backend::Scope scope;
    for (int64_t chunk = 0; chunk < Chunks(depth_); chunk += kPiece) {
      const int64_t chunks = std::min(kPiece, Chunks(depth_) - chunk);
      const std::uint32_t* weight = weight_;
      int64_t group_size = PieceSize();
      if (args_.packed) {
        group_size = Chunks(depth_) * kChunkSize<kTerms>;
        weight = reinterpret_cast<const std::uint32_t*>(args_.packed) + block_.column_begin / kSide * group_size +
                 chunk * kChunkSize<kTerms>;
      } else {
        PackWeight(args_.weight, block_.column_begin, block_.column_end, chunk, chunks, group_size, weight_);
      }
      const bool first = chunk == 0, last = chunk + chunks == Chunks(depth_);
      float* sums = sums_;
      const double tile_work =
          2.0 * kSide * kChunk * static_cast<double>(chunks * (block_.column_end - block_.column_begin));
      for (int64_t row = block_.row_begin; row < block_.row_end; row += kSide) {
        if (Interrupted(tile_work)) return;
        PackX(row, chunk, chunks);
        const bool lower = block_.row_end - row > kTileSide;
        const std::uint32_t* group = weight;
        for (int64_t column = block_.column_begin; column < block_.column_end;
             column += kSide, group += group_size, sums += kSide * kSide) {
          float* const product = first && !last ? sums : product_;
          Backend::template MultiplyAndFetch<kTerms>(x_, group, chunks, lower, product, kSide, group + group_size);
          if (last) {
            Finish(row, column, first ? nullptr : sums);
          } else if (!first) {
            Add(sums);
          }
        }
      }
    }
  }

  // Packs columns [begin, end) of `chunks` chunks of the depth, from chunk `first` on, into groups of 32 columns that
  // are group_size words apart.
  static void PackWeight(View<const T, 2> weight, int64_t begin, int64_t end, int64_t first, int64_t chunks,
                         int64_t group_size, std::uint32_t* packed) {
    const int64_t depth = weight.shape[0];
    for (int64_t chunk = 0; chunk < chunks; ++chunk, packed += kChunkSize<kTerms>) {
      const int64_t k = (first + chunk) * kChunk;
      if (Interrupted(kPackingWork * kChunk * static_cast<double>(end - begin))) return;
      if (weight.stride[1] == 1 && k + kChunk <= depth) {
        PackChunk(weight.at(k, begin), weight.stride[0], end - begin, group_size, packed);
        continue;
      }
      for (int64_t column = begin; column < end; column += kSide) {
        const int64_t columns = std::min<int64_t>(kSide, end - column);
        HWY_ALIGN float rows[kChunk * kPanel<float>] = {};
        PackWeights(weight.at(k, column), std::min<int64_t>(kChunk, depth - k), columns, weight.stride[0],
                    weight.stride[1], rows);
        PackChunk(rows, PanelWidth<float>(0, columns), columns, group_size,
                  packed + (column - begin) / kSide * group_size);
      }
    }
  }

 private:
  // Words of one piece of a group of columns or of a tile of rows.
  int64_t PieceSize() const { return std::min(kPiece, Chunks(depth_)) * kChunkSize<kTerms>; }

  // Replaces NaN by Inf, because rounding to bf16 could carry a NaN's bits over to 0. MINPS returns the second operand
  // if either is NaN.
  static HWY_INLINE hn::Vec<Tag<float>> WithoutNaN(hn::Vec<Tag<float>> x) {
    return hn::Min(x, hn::Set(Tag<float>(), std::numeric_limits<float>::infinity()));
  }

  // Elements [at, at + 16) of a row of n; 0 beyond its end.
  template <typename U>
  static HWY_INLINE hn::Vec<Tag<float>> LoadNumbers(const U* row, int64_t at, int64_t n) {
    const Tag<float> d;
    if (at + kLanes<float> <= n) return WithoutNaN(AllLanes().Load(d, row + at));
    return at < n ? WithoutNaN(FirstLanes{n - at}.Load(d, row + at)) : hn::Zero(d);
  }

  // Packs a chunk of 32 rows of W along the rows, which are contiguous. The next 32 rows are prefetched: row pieces are
  // too short and too far apart for hardware prefetchers.
  template <typename U>
  static HWY_INLINE void PackChunk(const U* rows, int64_t stride, int64_t columns, int64_t group_size,
                                   std::uint32_t* packed) {
    for (int64_t i = 0; i < kTileSide; ++i, rows += stride) {
      const U* const other = rows + kTileSide * stride;
      for (int64_t column = 0; column < columns; column += kSide) {
        std::uint32_t* const tiles = packed + column / kSide * group_size + i * kTileSide;
        for (int64_t line = 0; line < kSide; line += 64 / static_cast<int64_t>(sizeof(U))) {
          hwy::Prefetch(rows + kChunk * stride + column + line);
          hwy::Prefetch(other + kChunk * stride + column + line);
        }
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t at = column + half * kLanes<float>;
          StoreSplit<kTerms>(LoadNumbers(rows, at, columns), LoadNumbers(other, at, columns), tiles + half * kTileSize,
                             2 * kTileSize);
        }
      }
    }
  }

  void PackX(int64_t row, int64_t first, int64_t chunks) const {
    const int64_t rows = std::min<int64_t>(kSide, block_.row_end - row);
    if (rows < kSide) std::fill_n(x_, chunks * kChunkSize<kTerms>, 0u);
    for (int64_t r = 0; r < rows; ++r) {
      const T* x = args_.x.at(row + r);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t k = (first + chunk) * kChunk;
        __builtin_prefetch(x + 2 * args_.x.stride[0] + k);
        __builtin_prefetch(x + 2 * args_.x.stride[0] + k + kLanes<float>);
        StoreSplit<kTerms>(LoadNumbers(x, k, depth_), LoadNumbers(x, k + kLanes<float>, depth_),
                           x_ + chunk * kChunkSize<kTerms> + r * kTileSide, 2 * kTileSize);
      }
    }
  }

  // sums[32, 32] += product of one piece.
  void Add(float* sums) const {
    const Tag<float> d;
    for (int64_t i = 0; i < kSide * kSide; i += kLanes<float>) {
      hn::Store(hn::Add(hn::Load(d, sums + i), hn::Load(d, product_ + i)), d, sums + i);
    }
  }

  // out = sums of the earlier pieces (null: none) + product of the last piece + bias.
  void Finish(int64_t row, int64_t column, const float* sums) const {
    const Tag<float> d;
    const int64_t rows = std::min<int64_t>(kSide, block_.row_end - row);
    const int64_t columns = std::min<int64_t>(kSide, block_.column_end - column);
    bool finite = true;
    ForEachVector(d, columns, [&](auto lanes, int64_t j) HWY_ATTR {
      const auto bias = args_.bias ? lanes.Load(d, args_.bias + column + j) : hn::Zero(d);
      auto all = hn::Zero(d);  // NaN if one of the results is not finite
      T* out = args_.out.at(row, column + j);
      for (int64_t r = 0; r < rows; ++r, out += args_.out.stride[0]) {
        auto sum = hn::Load(d, product_ + r * kSide + j);
        if (sums) sum = hn::Add(hn::Load(d, sums + r * kSide + j), sum);
        sum = lanes.Or(d, hn::Add(sum, bias), hn::Zero(d));
        all = hn::MulAdd(sum, hn::Zero(d), all);
        hn::Store(sum, d, product_ + r * kSide + j);
        lanes.Store(sum, d, out);
      }
      finite &= hn::AllTrue(d, hn::Eq(all, all));
    });
    if (!finite) RecomputeNonFinite(row, rows, column, columns);
  }

  // Recomputes the elements of product_ that are not finite in float32.
  void RecomputeNonFinite(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    const Tag<float> d;
    LinearArgs<T> plain = args_;
    plain.packed = nullptr;
    plain.x.data = args_.x.at(row);
    plain.weight.data = args_.weight.at(0, column);
    if (args_.bias) plain.bias = args_.bias + column;
    LinearSums(plain, {0, rows, 0, columns}, recomputed_, kSide, recompute_scratch_);
    for (int64_t r = 0; r < rows; ++r) {
      ForEachVector(d, columns, [&](auto lanes, int64_t j) HWY_ATTR {
        const auto sum = hn::Load(d, product_ + r * kSide + j), recomputed = hn::Load(d, recomputed_ + r * kSide + j);
        lanes.Store(hn::IfThenElse(hn::IsFinite(sum), sum, recomputed), d, args_.out.at(row + r, column + j));
      });
    }
  }

  const LinearArgs<T>& args_;
  const LinearBlock& block_;
  const int64_t depth_;
  std::uint32_t* const x_;       // tile of rows: [chunk][term][2 tiles: 16 rows][16 words]
  std::uint32_t* const weight_;  // groups of columns of [chunk][term][2 tiles: 16 words][16 columns]
  float* const sums_;            // groups of columns of tiles of rows of [32][32]
  float* const product_;         // [32][32]; so is recomputed_
  float* const recomputed_;
  std::byte* const recompute_scratch_;
};

// function(Int<terms>) for the terms that the policy gives; 0: FMA.
template <class Backend, typename T, class Function>
auto WithTerms(Precision precision, const Function& function) {
  constexpr int kMax = std::min(kMaxLinearTerms<T>, MaxTerms(Backend::kBackend));
  const int terms = LinearTerms<T>(Backend::kBackend, precision);
  if constexpr (kMax < kMaxLinearTerms<T>) {
    if (terms == 0) return function(Int<0>());
  }
  if constexpr (kMax == 3) {
    if (terms == 3) return function(Int<3>());
    if (terms == 2) return function(Int<2>());
  }
  return function(Int<1>());
}

template <typename T>
bool Bf16Pays(const LinearArgs<T>& args, int terms) {
  return LinearBf16Pays(terms, args.out.shape[0], args.weight.shape[0], args.weight.shape[1]);
}

template <typename T>
int64_t Bf16GemvRows(const LinearArgs<T>& args) {
  return std::is_same_v<T, BFloat16> && Bf16Pays(args, 1) ? kMaxBf16GemvRows : kMaxGemvRows;
}

template <typename T>
LinearArgs<T> Unpacked(LinearArgs<T> args) {
  args.packed = nullptr;
  return args;
}

template <class Backend, typename T>
std::size_t Bf16ScratchBytes(const LinearArgs<T>& args, const LinearBlock& largest) {
  return WithTerms<Backend, T>(args.precision, [&](auto terms) {
    if constexpr (terms.value == 0) {
      return LinearScratchBytes<T>(args, largest);
    } else {
      if (!Bf16Pays(args, terms.value)) return LinearScratchBytes<T>(Unpacked(args), largest);
      Arena measure(nullptr);
      Bf16Linear<T, terms.value, Backend>(measure, args, largest);
      return measure.used();
    }
  });
}

template <class Backend, typename T>
void Bf16Run(const LinearArgs<T>& args, const LinearBlock& block, std::byte* scratch) {
  WithTerms<Backend, T>(args.precision, [&](auto terms) {
    if constexpr (terms.value == 0) {
      LinearRun<T>(args, block, scratch);
    } else {
      if (!Bf16Pays(args, terms.value)) return LinearRun<T>(Unpacked(args), block, scratch);
      Arena arena(scratch);
      Bf16Linear<T, terms.value, Backend>(arena, args, block).Run();
    }
  });
}

template <class Backend, typename T>
std::size_t Bf16PackedBytes(View<const T, 2> weight, Precision precision) {
  return WithTerms<Backend, T>(precision, [&](auto terms) {
    if constexpr (terms.value == 0) {
      return LinearPackedBytes<T>(weight, precision);
    } else {
      return Bytes(sizeof(std::uint32_t), Sides(weight.shape[1]), Chunks(weight.shape[0]), kChunkSize<terms.value>);
    }
  });
}

// Layout of packed weights: [group of 32 columns][chunk][term][2 tiles].
template <class Backend, typename T>
void Bf16Pack(View<const T, 2> weight, Precision precision, int64_t begin, int64_t end, std::byte* packed) {
  WithTerms<Backend, T>(precision, [&](auto terms) {
    if constexpr (terms.value == 0) {
      LinearPack<T>(weight, precision, begin, end, packed);
    } else {
      const int64_t chunks = Chunks(weight.shape[0]), group_size = chunks * kChunkSize<terms.value>;
      Bf16Linear<T, terms.value, Backend>::PackWeight(
          weight, begin, end, 0, chunks, group_size,
          reinterpret_cast<std::uint32_t*>(packed) + begin / kSide * group_size);
    }
  });
}

template <class Backend, typename T>
bool Bf16Panels(Precision precision) {
  return LinearTerms<T>(Backend::kBackend, precision) == 0;
}

template <class Backend, typename T>
constexpr LinearKernel<T> kBf16Linear{
    kSide,
    &Bf16GemvRows<T>,
    &Bf16ScratchBytes<Backend, T>,
    &Bf16Run<Backend, T>,
    kGemv<T, T>,
    {&Bf16PackedBytes<Backend, T>, &Bf16Pack<Backend, T>, &Bf16Panels<Backend, T>, WidenOf<T>()}};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
