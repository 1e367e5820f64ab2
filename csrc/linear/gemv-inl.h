// GEMV and small M: x W + b for so few rows of x that packing W (linear/kernel-inl.h) would cost more than the product.
// W is read once, at memory bandwidth. 16-bit weights are widened in registers.
//
// W packed as panels (linear/kernel-inl.h): one sequential stream; the sums of a panel stay in registers for a chunk of
// the depth.
//
// Rows of W contiguous: kDepth rows are read together, as many streams as hardware prefetchers follow, from the first
// column to the last; the sums stay in L1 from one such block to the next.
//
// In both, sums of a chunk of the depth start at zero and are added in order to the bias, as in linear/kernel-inl.h, so
// the bits are the same.
//
// Columns of W contiguous: dot products, each with a vector of partial sums, also in chunks; the bias is added last.
// Packed weights are read in place too, so that the bits are the same.
//
// Tiles of R rows of x share the loads of V vectors of W: R x V FMAs for R + V loads.

#if defined(HEADWISE_LINEAR_GEMV_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_GEMV_INL_H_
#undef HEADWISE_LINEAR_GEMV_INL_H_
#else
#define HEADWISE_LINEAR_GEMV_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "linear/kernel-inl.h"
#include "linear/kernel.h"
#include "matmul/fma-inl.h"
#include "simd/float16-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace gemv {

// Vectors of columns, or dot products, of a tile: the sums of four rows fill half of the registers.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

// On Zen 4, 4 to 16 rows are equal within 10 % for float32; 8 are 10 to 20 % faster for 16-bit types and on AVX2.
constexpr std::int64_t kDepth = 8;
static_assert(kDepthChunk<double> % kDepth == 0, "a chunk is a multiple of kDepth");

// Of weights of T.
template <typename T>
struct Operands {
  View<const Accumulator<T>, 2> x;
  View<const T, 2> weight;
  const Accumulator<T>* bias = nullptr;  // null: zero
  View<Accumulator<T>, 2> out;
  View<Accumulator<T>, 2> chunk;  // sums of the current chunk; `out` itself where there is only one
};

// chunk[row + r, column...] += x[row + r, k...] W[k..., column...] for `lanes` of kCount vectors of columns, k in
// [begin, end)
template <int kRows, int kCount, typename T, class Lanes>
HWY_INLINE void AddDepth(const Operands<T>& in, std::int64_t begin, std::int64_t end, std::int64_t row,
                         std::int64_t column, Lanes lanes) {
  using Sum = Accumulator<T>;
  const Tag<Sum> d;
  hn::Vec<Tag<Sum>> sum[kRows][kCount];
  const Sum* x[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    x[r] = in.x.at(row + r);
    const Sum* const from = in.chunk.at(row + r, column);
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) sum[r][v] = lanes.Load(d, from + v * kLanes<Sum>);
  }
  const T* w = in.weight.at(begin, column);
  for (std::int64_t k = begin; k < end; ++k, w += in.weight.stride[0]) {
    hn::Vec<Tag<Sum>> w_k[kCount];
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) w_k[v] = lanes.Load(d, w + v * kLanes<Sum>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto x_rk = hn::Set(d, x[r][k]);
#pragma GCC unroll 16
      for (int v = 0; v < kCount; ++v) sum[r][v] = hn::MulAdd(x_rk, w_k[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Sum* const to = in.chunk.at(row + r, column);
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) lanes.Store(sum[r][v], d, to + v * kLanes<Sum>);
  }
}

template <int kRows, typename T>
HWY_INLINE void AddDepthToRows(const Operands<T>& in, std::int64_t begin, std::int64_t end, std::int64_t row,
                               std::int64_t columns) {
  constexpr std::int64_t kWidth = kLanes<Accumulator<T>>;
  std::int64_t j = 0;
  for (; j + kVectors * kWidth <= columns; j += kVectors * kWidth) {
    AddDepth<kRows, kVectors>(in, begin, end, row, j, AllLanes());
  }
  for (; j + kWidth <= columns; j += kWidth) AddDepth<kRows, 1>(in, begin, end, row, j, AllLanes());
  if (j < columns) AddDepth<kRows, 1>(in, begin, end, row, j, FirstLanes{columns - j});
}

// out = before + chunk; if before is null, out = chunk.
template <typename Sum>
HWY_NOINLINE void FinishChunk(const Sum* before, const Sum* chunk, std::int64_t columns, Sum* out) {
  const Tag<Sum> d;
  ForEachVector(d, columns, [&](auto lanes, std::int64_t j) HWY_ATTR {
    const auto sum = lanes.Load(d, chunk + j);
    lanes.Store(before ? hn::Add(lanes.Load(d, before + j), sum) : sum, d, out + j);
  });
}

// out[row + r, column + c] = x[row + r, :] . W[:, column + c] + bias[column + c]
template <int kRows, int kColumns, typename T>
HWY_INLINE void Dots(const Operands<T>& in, std::int64_t row, std::int64_t column) {
  const Tag<Accumulator<T>> d;
  hn::Vec<Tag<Accumulator<T>>> sum[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::Zero(d);
  }
  // Each lane sums as many products as one sum of linear/kernel-inl.h does.
  constexpr std::int64_t kChunk = kDepthChunk<T> * kLanes<Accumulator<T>>;
  for (std::int64_t begin = 0; begin < in.x.shape[1]; begin += kChunk) {
    hn::Vec<Tag<Accumulator<T>>> chunk[kRows][kColumns];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) chunk[r][c] = hn::Zero(d);
    }
    ForEachVector(d, std::min(kChunk, in.x.shape[1] - begin), [&](auto lanes, std::int64_t k) HWY_ATTR {
      hn::Vec<Tag<Accumulator<T>>> w_k[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) w_k[c] = lanes.Load(d, in.weight.at(begin + k, column + c));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto x_rk = lanes.Load(d, in.x.at(row + r, begin + k));
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) chunk[r][c] = hn::MulAdd(x_rk, w_k[c], chunk[r][c]);
      }
    });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::Add(sum[r][c], chunk[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const Accumulator<T> dot = hn::GetLane(hn::SumOfLanes(d, sum[r][c]));
      *in.out.at(row + r, column + c) = in.bias ? dot + in.bias[column + c] : dot;
    }
  }
}

template <int kRows, typename T>
HWY_INLINE void DotsOfRows(const Operands<T>& in, std::int64_t row, std::int64_t begin, std::int64_t end) {
  std::int64_t j = begin;
  for (; j + kVectors <= end; j += kVectors) Dots<kRows, kVectors>(in, row, j);
  for (; j < end; ++j) Dots<kRows, 1>(in, row, j);
}

// Calls visit(integral_constant<count>, row) for tiles of 4, 2 and 1 rows.
template <class Visit>
HWY_INLINE void ForEachRowTile(std::int64_t rows, Visit&& visit) {
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) visit(std::integral_constant<int, 4>(), row);
  if (row + 2 <= rows) {
    visit(std::integral_constant<int, 2>(), row);
    row += 2;
  }
  if (row < rows) visit(std::integral_constant<int, 1>(), row);
}

// out[row + r, column...] = (k == 0 ? bias : out) + x[row + r, k...] panel, for the columns of a panel of kCount
// vectors, of which `columns` exist, and `depth` rows of it.
template <int kRows, int kCount, typename T>
HWY_NOINLINE void AddPanel(const Operands<T>& in, const T* panel, std::int64_t k, std::int64_t depth, std::int64_t row,
                           std::int64_t column, std::int64_t columns) {
  using Sum = Accumulator<T>;
  const Tag<Sum> d;
  hn::Vec<Tag<Sum>> sum[kRows][kCount];
  const Sum* x[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    x[r] = in.x.at(row + r, k);
#pragma GCC unroll 2
    for (int v = 0; v < kCount; ++v) sum[r][v] = hn::Zero(d);
  }
  for (std::int64_t i = 0; i < depth; ++i, panel += kCount * kLanes<Sum>) {
    hn::Vec<Tag<Sum>> w_i[kCount];
#pragma GCC unroll 2
    for (int v = 0; v < kCount; ++v) w_i[v] = AllLanes().Load(d, panel + v * kLanes<Sum>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto x_ri = hn::Set(d, x[r][i]);
#pragma GCC unroll 2
      for (int v = 0; v < kCount; ++v) sum[r][v] = hn::MulAdd(x_ri, w_i[v], sum[r][v]);
    }
  }
  HWY_ALIGN Sum chunk[kCount * kLanes<Sum>];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kCount; ++v) hn::Store(sum[r][v], d, chunk + v * kLanes<Sum>);
    Sum* const out = in.out.at(row + r, column);
    const Sum* const bias = in.bias ? in.bias + column : nullptr;
    FinishChunk<Sum>(k == 0 ? bias : out, chunk, std::min(columns, kCount * kLanes<Sum>), out);
  }
}

// Columns [begin, begin + columns) of packed weights, of which all columns are `all`.
template <typename T>
void RunPanels(const Operands<T>& in, const T* packed, std::int64_t all, std::int64_t begin, std::int64_t columns) {
  using Sum = Accumulator<T>;
  static_assert(kGemvMultiple % kPanel<Sum> == 0, "ranges of columns begin with a panel");
  const std::int64_t rows = in.out.shape[0], depth = in.x.shape[1];
  // A depth of 0 still writes the bias.
  for (std::int64_t k = 0; k == 0 || k < depth; k += kDepthChunk<T>) {
    const std::int64_t chunk = std::min(kDepthChunk<T>, depth - k);
    if (Interrupted(2.0 * static_cast<double>(chunk) * static_cast<double>(rows * columns))) return;
    const T* panel = PanelsAt(packed, all, k, chunk, begin);
    for (std::int64_t column = 0; column < columns; column += kPanel<Sum>) {
      const std::int64_t width = PanelWidth<Sum>(column, columns);
      ForEachRowTile(rows, [&](auto count, std::int64_t row) HWY_ATTR {
        if (width == kPanel<Sum>) {
          AddPanel<count.value, 2>(in, panel, k, chunk, row, column, columns - column);
        } else {
          AddPanel<count.value, 1>(in, panel, k, chunk, row, column, columns - column);
        }
      });
      panel += width * chunk;
    }
  }
}

// Whether chunks are summed apart from `out`: rows of W contiguous, and more than one chunk.
template <typename X, typename W>
bool HasChunks(const LinearArgs<X, W>& args) {
  return !args.packed && args.weight.stride[1] == 1 && args.x.shape[1] > kDepthChunk<X>;
}

// For 16-bit x: x widened, and sums before they are rounded.
template <typename X, typename W>
struct Scratch {
  using Sum = Accumulator<X>;
  Scratch(Arena& arena, const LinearArgs<X, W>& args, std::int64_t columns)
      : x(arena.Allocate<Sum>(kIs16Bit<X> ? args.x.shape[0] : 0, args.x.shape[1])),
        out(arena.Allocate<Sum>(kIs16Bit<X> ? args.x.shape[0] : 0, columns)),
        chunk(arena.Allocate<Sum>(HasChunks(args) ? args.x.shape[0] : 0, columns)) {}
  Sum *x, *out, *chunk;
};

template <typename T>
void Run(const Operands<T>& in, std::int64_t columns) {
  const std::int64_t rows = in.out.shape[0], depth = in.x.shape[1];
  if (in.weight.stride[1] == 1) {
    // A depth of 0 still writes the bias.
    for (std::int64_t chunk = 0; chunk == 0 || chunk < depth; chunk += kDepthChunk<T>) {
      const std::int64_t chunk_end = std::min(depth, chunk + kDepthChunk<T>);
      if (Interrupted(2.0 * static_cast<double>(chunk_end - chunk) * static_cast<double>(rows * columns))) return;
      for (std::int64_t r = 0; r < rows; ++r) std::fill_n(in.chunk.at(r), columns, Accumulator<T>{0});
      for (std::int64_t k = chunk; k < chunk_end; k += kDepth) {
        ForEachRowTile(rows, [&](auto count, std::int64_t row) HWY_ATTR {
          AddDepthToRows<count.value>(in, k, std::min(chunk_end, k + kDepth), row, columns);
        });
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        FinishChunk<Accumulator<T>>(chunk == 0 ? in.bias : in.out.at(r), in.chunk.at(r), columns, in.out.at(r));
      }
    }
  } else {
    for (std::int64_t j = 0; j < columns; j += kVectors) {
      if (Interrupted(2.0 * kVectors * static_cast<double>(depth) * static_cast<double>(rows))) return;
      ForEachRowTile(rows, [&](auto count, std::int64_t row)
                               HWY_ATTR { DotsOfRows<count.value>(in, row, j, std::min(columns, j + kVectors)); });
    }
  }
}

}  // namespace gemv

template <typename X, typename W>
std::size_t GemvScratchBytes(const LinearArgs<X, W>& args, std::int64_t columns) {
  Arena measure(nullptr);
  gemv::Scratch<X, W>(measure, args, columns);
  return measure.used();
}

// Columns [begin, end) of the output.
template <typename X, typename W>
void Gemv(const LinearArgs<X, W>& args, std::int64_t begin, std::int64_t end, std::byte* memory) {
  using Sum = Accumulator<X>;
  const std::int64_t rows = args.x.shape[0], depth = args.x.shape[1], columns = end - begin;
  Arena arena(memory);
  const gemv::Scratch<X, W> scratch(arena, args, columns);
  gemv::Operands<W> in;
  in.weight = args.weight;
  in.weight.data = args.weight.at(0, begin);
  in.bias = args.bias ? args.bias + begin : nullptr;
  if constexpr (kIs16Bit<X>) {
    for (std::int64_t r = 0; r < rows; ++r) Widen(args.x.at(r), depth, scratch.x + r * depth);
    in.x = {scratch.x, {rows, depth}, {depth, 1}};
    in.out = {scratch.out, {rows, columns}, {columns, 1}};
  } else {
    in.x = args.x;
    in.out = {args.out.at(0, begin), {rows, columns}, args.out.stride};
  }
  in.chunk = gemv::HasChunks(args) ? View<Sum, 2>{scratch.chunk, {rows, columns}, {columns, 1}} : in.out;
  if (args.packed) {
    gemv::RunPanels(in, reinterpret_cast<const W*>(args.packed), args.out.shape[1], begin, columns);
  } else {
    gemv::Run(in, columns);
  }
  if constexpr (kIs16Bit<X>) {
    for (std::int64_t r = 0; r < rows; ++r) Narrow(scratch.out + r * columns, columns, args.out.at(r, begin));
  }
}

template <typename X, typename W>
constexpr GemvKernel<X, W> kGemv{&GemvScratchBytes<X, W>, &Gemv<X, W>};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
