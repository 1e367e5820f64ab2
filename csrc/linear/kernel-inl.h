// A block of x W + b on FMA.
//
// Blocking: W is packed into panels (matmul/pack-inl.h) one chunk of the depth at a time, small enough for L2; each
// tile of rows of x is packed in turn and multiplied with all panels. Sums of a chunk start at zero and are added to
// `out` in order, the first to the bias. With chunks of c of a depth n, the rounding error grows with sqrt(n c) instead
// of n, for c > sqrt(n); shorter chunks cost more than they gain. 16-bit types are widened while packed, and sums of a
// 16-bit output are kept in float32 scratch. Constant 16-bit weights stay 16-bit in their packed form, and one chunk of
// a block at a time is widened into scratch.

#if defined(HEADWISE_LINEAR_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_KERNEL_INL_H_
#undef HEADWISE_LINEAR_KERNEL_INL_H_
#else
#define HEADWISE_LINEAR_KERNEL_INL_H_
#endif

#include <algorithm>

#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "linear/kernel.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/float16-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// 1 KB of the depth: a tile of x takes 12 KB of L1, through which panels stream.
template <typename T>
constexpr int64_t kDepthChunk = 1024 / sizeof(Accumulator<T>);

template <typename T>
struct LinearScratch {
  using Sum = Accumulator<T>;
  LinearScratch(Arena& arena, int64_t columns, int64_t depth)
      : weight(arena.Allocate<Sum>(PackedColumns<Sum>(columns) * std::min(depth, kDepthChunk<T>))),
        x(arena.Allocate<Sum>(kTileRows * std::min(depth, kDepthChunk<T>))) {}
  Sum* weight;
  Sum* x;
};

// Sums of a block of a 16-bit type, which its output cannot hold; null for other types.
template <typename T>
Accumulator<T>* LinearSumsScratch(Arena& arena, const LinearBlock& block) {
  if (!kIs16Bit<T>) return nullptr;
  return arena.Allocate<Accumulator<T>>((block.row_end - block.row_begin) * (block.column_end - block.column_begin));
}

// Rounds the sums of a block to T.
template <typename T>
void LinearRound(const Accumulator<T>* sums, const LinearBlock& block, View<T, 2> out) {
  const int64_t columns = block.column_end - block.column_begin;
  for (int64_t row = block.row_begin; row < block.row_end; ++row, sums += columns) {
    Narrow(sums, columns, out.at(row, block.column_begin));
  }
}

// Columns of a block whose panels are in scratch.
template <typename X, typename W>
int64_t StagedColumns(const LinearArgs<X, W>& args, const LinearBlock& block) {
  return args.packed && !kIs16Bit<W> ? 0 : block.column_end - block.column_begin;
}

template <typename X, typename W = X>
std::size_t LinearScratchBytes(const LinearArgs<X, W>& args, const LinearBlock& largest) {
  Arena measure(nullptr);
  LinearSumsScratch<X>(measure, largest);
  LinearScratch<X>(measure, StagedColumns(args, largest), args.x.shape[1]);
  return measure.used();
}

// to[column * depth + k] = from[k * depth_stride + column * column_stride], widened.
template <typename T>
void WidenColumns(const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                  float* to) {
  for (int64_t c = 0; c < columns; ++c, from += column_stride, to += depth) {
    if (depth_stride == 1) {
      Widen(from, depth, to);
    } else {
      for (int64_t k = 0; k < depth; ++k) Widen(from + k * depth_stride, 1, to + k);
    }
  }
}

// PackPanels of T, widened to the accumulator type.
template <typename T>
void PackWeights(const T* b, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                 Accumulator<T>* packed) {
  if constexpr (!kIs16Bit<T>) {
    PackPanels(b, depth, columns, depth_stride, column_stride, packed);
  } else {
    constexpr int64_t kStep = 64;
    for (int64_t column = 0; column < columns; column += kPanel<float>) {
      const int64_t width = PanelWidth<float>(column, columns), filled = std::min(width, columns - column);
      for (int64_t k = 0; k < depth; k += kStep) {
        const int64_t step = std::min(kStep, depth - k);
        const T* from = b + k * depth_stride + column * column_stride;
        if (filled < width) std::fill_n(packed, step * width, 0.0f);
        if (column_stride == 1) {
          for (int64_t i = 0; i < step; ++i) Widen(from + i * depth_stride, filled, packed + i * width);
        } else {
          HWY_ALIGN float wide[kStep * kPanel<float>];
          WidenColumns(from, step, filled, depth_stride, column_stride, wide);
          PackPanel(wide, step, filled, int64_t{1}, step, width, packed);
        }
        packed += step * width;
      }
    }
  }
}

// PackTile of T, widened to the accumulator type.
template <typename T>
void PackRowsOfX(const T* x, int64_t rows, int64_t row_stride, int64_t depth, int height, Accumulator<T>* packed) {
  if constexpr (!kIs16Bit<T>) {
    PackTile(x, rows, row_stride, depth, height, packed);
  } else {
    HWY_ALIGN float wide[kTileRows * kDepthChunk<T>];
    WidenColumns(x, depth, rows, 1, row_stride, wide);
    PackTile(wide, rows, depth, depth, height, packed);
  }
}

// PackPanels of a 16-bit type: the panels of PackWeights before they are widened.
template <typename W>
void PackNarrowPanels(const W* b, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                      W* packed) {
  for (int64_t column = 0; column < columns; column += kPanel<float>, b += kPanel<float> * column_stride) {
    const int64_t width = PanelWidth<float>(column, columns), filled = std::min(width, columns - column);
    if (filled < width) std::fill_n(packed, depth * width, W{0});
    if (column_stride == 1) {
      for (int64_t k = 0; k < depth; ++k) std::copy_n(b + k * depth_stride, filled, packed + k * width);
    } else {
      for (int64_t c = 0; c < filled; ++c) {
        const W* const from = b + c * column_stride;
        for (int64_t k = 0; k < depth; ++k) packed[k * width + c] = from[k * depth_stride];
      }
    }
    packed += depth * width;
  }
}

// Layout of packed weights: [chunk of the depth][panel].
template <typename W>
std::size_t LinearPackedBytes(View<const W, 2> weight, Precision) {
  return Bytes(sizeof(W), weight.shape[0], PackedColumns<Accumulator<W>>(weight.shape[1]));
}

// The panels of a chunk that begins at depth k, from column `begin` on.
template <typename W>
W* PanelsAt(W* packed, int64_t columns, int64_t k, int64_t chunk, int64_t begin) {
  return packed + k * PackedColumns<Accumulator<std::remove_const_t<W>>>(columns) + chunk * begin;
}

template <typename W>
void LinearPack(View<const W, 2> weight, Precision, int64_t begin, int64_t end, std::byte* packed) {
  for (int64_t k = 0; k < weight.shape[0]; k += kDepthChunk<W>) {
    const int64_t chunk = std::min(kDepthChunk<W>, weight.shape[0] - k);
    if (Interrupted(kPackingWork * static_cast<double>(chunk) * static_cast<double>(end - begin))) return;
    W* const panels = PanelsAt(reinterpret_cast<W*>(packed), weight.shape[1], k, chunk, begin);
    const W* const from = weight.at(k, begin);
    if constexpr (kIs16Bit<W>) {
      PackNarrowPanels(from, chunk, end - begin, weight.stride[0], weight.stride[1], panels);
    } else {
      PackPanels(from, chunk, end - begin, weight.stride[0], weight.stride[1], panels);
    }
  }
}

inline bool FmaPanels(Precision) { return true; }

// Widen, as a function.
template <typename W>
void WidenWeights(const W* from, int64_t n, Accumulator<W>* to) {
  Widen(from, n, to);
}
template <typename W>
constexpr auto WidenOf() -> void (*)(const W*, int64_t, Accumulator<W>*) {
  if constexpr (kIs16Bit<W>) {
    return &WidenWeights<W>;
  } else {
    return nullptr;
  }
}

// Where a tile of sums goes and what is added to it. Only `rows` x `columns` of the tile exist.
template <typename T>
struct LinearTile {
  T* out;
  int64_t out_stride;
  int64_t rows;
  int64_t columns;
  const T* initial;  // bias; null: zero, or `out` if `resume`
  bool resume;       // add to `out`

  HWY_INLINE int64_t Valid(int v) const { return columns - v * kLanes<T>; }

  HWY_INLINE hn::Vec<Tag<T>> Read(const T* from, int v) const {
    const Tag<T> d;
    const int64_t valid = Valid(v);
    if (valid >= kLanes<T>) return hn::LoadU(d, from + v * kLanes<T>);
    if (valid <= 0) return hn::Zero(d);
    return FirstLanes{valid}.Load(d, from + v * kLanes<T>);
  }

  HWY_INLINE hn::Vec<Tag<T>> operator()(int, int) const { return hn::Zero(Tag<T>()); }

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    if (r >= rows) return;
    const T* const base = resume ? out + r * out_stride : initial;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t valid = Valid(v);
      T* to = out + r * out_stride + v * kLanes<T>;
      const auto sum = base ? hn::Add(Read(base, v), sums[v]) : sums[v];
      if (valid >= kLanes<T>) {
        hn::StoreU(sum, d, to);
      } else if (valid > 0) {
        FirstLanes{valid}.Store(sum, d, to);
      }
    }
  }
};

template <typename T, int kRows>
void LinearTileRow(const T* x, const T* panel, int64_t depth, int64_t columns, LinearTile<T> tile) {
  const T* bias = tile.initial;
  T* out = tile.out;
  for (int64_t column = 0; column < columns; column += kPanel<T>) {
    tile.columns = columns - column;
    tile.out = out + column;
    tile.initial = bias ? bias + column : nullptr;
    const int64_t width = PanelWidth<T>(column, columns);
    if (width == kPanel<T>) {
      GemmTile<kRows, 2, 1, kRows>(depth, x, panel, tile, tile);
    } else {
      GemmTile<kRows, 1, 1, kRows>(depth, x, panel, tile, tile);
    }
    panel += width * depth;
  }
}

// Writes the sums of a block, with bias, to `sums`.
template <typename X, typename W>
void LinearSums(const LinearArgs<X, W>& args, const LinearBlock& block, Accumulator<X>* sums, int64_t sums_stride,
                std::byte* memory) {
  using Sum = Accumulator<X>;
  const View<const W, 2>& weight = args.weight;
  const int64_t depth = args.x.shape[1], columns = block.column_end - block.column_begin;
  Arena arena(memory);
  const LinearScratch<X> scratch(arena, StagedColumns(args, block), depth);
  // A depth of 0 still writes the bias.
  for (int64_t k = 0; k == 0 || k < depth; k += kDepthChunk<X>) {
    const int64_t chunk = std::min(kDepthChunk<X>, depth - k);
    const Sum* panels = scratch.weight;
    if (args.packed) {
      const W* const packed =
          PanelsAt(reinterpret_cast<const W*>(args.packed), weight.shape[1], k, chunk, block.column_begin);
      if constexpr (kIs16Bit<W>) {
        Widen(packed, chunk * PackedColumns<Sum>(columns), scratch.weight);
      } else {
        panels = packed;
      }
    } else {
      PackWeights(weight.at(k, block.column_begin), chunk, columns, weight.stride[0], weight.stride[1], scratch.weight);
    }
    for (int64_t row = block.row_begin; row < block.row_end; row += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, block.row_end - row);
      if (Interrupted(2.0 * static_cast<double>(chunk) * static_cast<double>(columns) * static_cast<double>(rows)))
        return;
      const int height = TileHeight(rows);
      PackRowsOfX(args.x.at(row, k), rows, args.x.stride[0], chunk, height, scratch.x);
      const LinearTile<Sum> tile{sums + (row - block.row_begin) * sums_stride,         sums_stride, rows, columns,
                                 args.bias ? args.bias + block.column_begin : nullptr, k > 0};
      WithHeight(height, [&](auto rows_of_tile) HWY_ATTR {
        LinearTileRow<Sum, rows_of_tile.value>(scratch.x, panels, chunk, columns, tile);
      });
    }
  }
}

template <typename X, typename W>
std::int64_t FmaMaxGemvRows(const LinearArgs<X, W>&) {
  return kMaxGemvRows;
}

template <typename X, typename W>
void LinearRun(const LinearArgs<X, W>& args, const LinearBlock& block, std::byte* memory) {
  if constexpr (kIs16Bit<X>) {
    Arena arena(memory);
    float* const sums = LinearSumsScratch<X>(arena, block);
    LinearSums(args, block, sums, block.column_end - block.column_begin, memory + arena.used());
    LinearRound(sums, block, args.out);
  } else {
    LinearSums(args, block, args.out.at(block.row_begin, block.column_begin), args.out.stride[0], memory);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
