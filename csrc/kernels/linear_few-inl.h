// x W + b for the few rows of x for which packing W (linear-inl.h) would cost more than the product: W is read where it
// lies, once, at the speed of memory.
//
// Rows of W contiguous: kDepth of them go by together, as many streams as hardware prefetchers follow, from the first
// column to the last; between one such block and the next the sums wait in `out`, which is in the first-level cache.
// Each sum runs over the depth in order, from the bias on, as in linear-inl.h: the same bits.
//
// Columns of W contiguous: dot products, a vector of partial sums each, the bias last.
//
// Tiles of rows share what is loaded of W: R x V multiply-adds for R + V loads.

#if defined(HEADWISE_KERNELS_LINEAR_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_LINEAR_FEW_INL_H_
#undef HEADWISE_KERNELS_LINEAR_FEW_INL_H_
#else
#define HEADWISE_KERNELS_LINEAR_FEW_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/gemm-inl.h"
#include "kernels/half-inl.h"
#include "kernels/linear.h"
#include "kernels/rows-inl.h"
#include "runtime/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace few {

// Vectors of columns, or columns of dot products, of a tile: with four rows its sums fill half of the registers.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

constexpr std::int64_t kDepth = 16;

template <typename T>
struct Operands {
  View<const Accumulator<T>, 2> x;
  View<const T, 2> weight;
  const Accumulator<T>* bias;  // null: zero
  View<Accumulator<T>, 2> out;
};

// out[row + r, column...] += x[row + r, k...] W[k..., column...] for `lanes` of kCount vectors of columns; with k = 0
// the bias is what is added to.
template <int kRows, int kCount, typename T, class Lanes>
HWY_INLINE void AddDepth(const Operands<T>& in, std::int64_t row, std::int64_t column, std::int64_t k,
                         std::int64_t k_end, Lanes lanes) {
  const Tag<Accumulator<T>> d;
  hn::Vec<Tag<Accumulator<T>>> sum[kRows][kCount];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Accumulator<T>* const from = k > 0 ? in.out.at(row + r, column) : in.bias ? in.bias + column : nullptr;
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) sum[r][v] = from ? lanes.Load(d, from + v * kLanes<Accumulator<T>>) : hn::Zero(d);
  }
  const Accumulator<T>* x[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) x[r] = in.x.at(row + r);
  for (const T* w = in.weight.at(k, column); k < k_end; ++k, w += in.weight.stride[0]) {
    hn::Vec<Tag<Accumulator<T>>> w_k[kCount];
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) w_k[v] = lanes.Load(d, w + v * kLanes<Accumulator<T>>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto x_rk = hn::Set(d, x[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) sum[r][v] = hn::MulAdd(x_rk, w_k[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) lanes.Store(sum[r][v], d, in.out.at(row + r, column + v * kLanes<Accumulator<T>>));
  }
}

template <int kRows, typename T>
HWY_INLINE void AddDepthToRows(const Operands<T>& in, std::int64_t row, std::int64_t begin, std::int64_t end,
                               std::int64_t k, std::int64_t k_end) {
  std::int64_t j = begin;
  for (; j + kVectors * kLanes<Accumulator<T>> <= end; j += kVectors * kLanes<Accumulator<T>>) {
    AddDepth<kRows, kVectors>(in, row, j, k, k_end, AllLanes());
  }
  for (; j + kLanes<Accumulator<T>> <= end; j += kLanes<Accumulator<T>>)
    AddDepth<kRows, 1>(in, row, j, k, k_end, AllLanes());
  if (j < end) AddDepth<kRows, 1>(in, row, j, k, k_end, FirstLanes{end - j});
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
  ForEachVector(d, in.x.shape[1], [&](auto lanes, std::int64_t k) HWY_ATTR {
    hn::Vec<Tag<Accumulator<T>>> w_k[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) w_k[c] = lanes.Load(d, in.weight.at(k, column + c));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto x_rk = lanes.Load(d, in.x.at(row + r, k));
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[r][c] = hn::MulAdd(x_rk, w_k[c], sum[r][c]);
    }
  });
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

template <typename T>
struct Scratch {
  Scratch(Arena& arena, const LinearArgs<T>& args, std::int64_t columns)
      : x(arena.Take<float>(args.x.shape[0], args.x.shape[1])), out(arena.Take<float>(args.x.shape[0], columns)) {}
  float *x, *out;
};

template <typename T>
void Run(const Operands<T>& in, std::int64_t begin, std::int64_t end) {
  const std::int64_t rows = in.out.shape[0], depth = in.x.shape[1];
  if (in.weight.stride[1] == 1) {
    // A depth of 0 still writes the bias.
    for (std::int64_t k = 0; k == 0 || k < depth; k += kDepth) {
      const std::int64_t k_end = std::min(depth, k + kDepth);
      ForEachRowTile(rows, [&](auto count, std::int64_t row)
                               HWY_ATTR { AddDepthToRows<count.value>(in, row, begin, end, k, k_end); });
    }
  } else {
    for (std::int64_t j = begin; j < end; j += kVectors) {
      ForEachRowTile(rows, [&](auto count, std::int64_t row)
                               HWY_ATTR { DotsOfRows<count.value>(in, row, j, std::min(end, j + kVectors)); });
    }
  }
}

}  // namespace few

// Only halves need any: for x, widened, and their sums.
template <typename T>
std::size_t LinearFewRowsScratchBytes(const LinearArgs<T>& args, std::int64_t columns) {
  if (!kIsHalf<T>) return 0;
  Arena measure(nullptr);
  few::Scratch<T>(measure, args, columns);
  return measure.used();
}

// Columns [begin, end) of the output.
template <typename T>
void LinearFewRows(const LinearArgs<T>& args, std::int64_t begin, std::int64_t end, std::byte* memory) {
  if constexpr (kIsHalf<T>) {
    const std::int64_t rows = args.x.shape[0], depth = args.x.shape[1], columns = end - begin;
    Arena arena(memory);
    const few::Scratch<T> scratch(arena, args, columns);
    for (std::int64_t r = 0; r < rows; ++r) Widen(args.x.at(r), depth, scratch.x + r * depth);
    View<const T, 2> weight = args.weight;
    weight.data = args.weight.at(0, begin);
    few::Run<T>({{scratch.x, {rows, depth}, {depth, 1}},
                 weight,
                 args.bias ? args.bias + begin : nullptr,
                 {scratch.out, {rows, columns}, {columns, 1}}},
                0, columns);
    for (std::int64_t r = 0; r < rows; ++r) Narrow(scratch.out + r * columns, columns, args.out.at(r, begin));
  } else {
    few::Run<T>({args.x, args.weight, args.bias, args.out}, begin, end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
