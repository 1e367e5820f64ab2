// Packing for the register tile of fma-inl.h.
//
// B [depth, columns] becomes panels of kPanel columns, each [depth][kPanel] and contiguous, the last one [depth][lanes]
// if one vector holds its columns; missing columns are zero. A tile reads a panel sequentially and aligned, for any
// strides of the array. A [rows, depth] becomes [depth][height], so that one step's scalars share a
// cache line. Each element is moved once per block and used by every row that shares the panel.

#if defined(HEADWISE_MATMUL_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_MATMUL_PACK_INL_H_
#undef HEADWISE_MATMUL_PACK_INL_H_
#else
#define HEADWISE_MATMUL_PACK_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Width of the panel that begins at `column`.
template <typename T>
HWY_INLINE int64_t PanelWidth(int64_t column, int64_t columns) {
  const bool narrow = columns - column <= kLanes<T>;
  return narrow ? kLanes<T> : kPanel<T>;
}

// Columns of all panels together.
template <typename T>
constexpr int64_t PackedColumns(int64_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// For contiguous rows of B: copies them piece by piece.
template <typename T>
void PackRows(const T* b, int64_t depth, int64_t columns, int64_t depth_stride, T* packed) {
  const Tag<T> d;
  for (int64_t column = 0; column < columns; column += kPanel<T>) {
    const int64_t width = PanelWidth<T>(column, columns);
    for (int64_t k = 0; k < depth; ++k) {
      const T* row = b + k * depth_stride + column;
      for (int64_t v = 0; v < width; v += kLanes<T>, packed += kLanes<T>) {
        const int64_t left = columns - column - v;
        hn::Store(left >= kLanes<T> ? hn::LoadU(d, row + v) : FirstLanes{left}.Load(d, row + v), d, packed);
      }
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
// 128-bit blocks, the i-th from `from + i * stride`.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const T* from, int64_t stride) {
  if constexpr (hn::MaxLanes(d) * sizeof(T) <= 16) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    const int64_t blocks = static_cast<int64_t>(hn::MaxLanes(half) * sizeof(T) / 16);
    return hn::Combine(d, LoadBlocks(half, from + blocks * stride, stride), LoadBlocks(half, from, stride));
  }
}

// out[k * out_stride + column] = in[column * in_stride + k] for the columns of a vector and the elements k of a 128-bit
// block. Squares of such blocks are side by side in the vectors, and each is transposed by itself.
template <class D>
HWY_INLINE void TransposeBlocks(D d, const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const hn::Repartition<double, D> pairs;
  const auto r0 = LoadBlocks(d, in, 4 * in_stride), r1 = LoadBlocks(d, in + in_stride, 4 * in_stride);
  const auto r2 = LoadBlocks(d, in + 2 * in_stride, 4 * in_stride);
  const auto r3 = LoadBlocks(d, in + 3 * in_stride, 4 * in_stride);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)), d, out + out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)), d, out + 2 * out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23)), d, out + 3 * out_stride);
}

template <class D>
HWY_INLINE void TransposeBlocks(D d, const double* in, int64_t in_stride, double* out, int64_t out_stride) {
  const auto r0 = LoadBlocks(d, in, 2 * in_stride), r1 = LoadBlocks(d, in + in_stride, 2 * in_stride);
  hn::StoreU(hn::InterleaveLower(d, r0, r1), d, out);
  hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, out + out_stride);
}
#endif

// Packs `columns` columns of B to packed[k * width + column], transposed in squares if columns are contiguous.
template <typename T>
void PackPanel(const T* b, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, int64_t width,
               T* packed) {
  int64_t column = 0;
  const auto copy = [&](int64_t k, int64_t c) HWY_ATTR {
    for (; k < depth; ++k) packed[k * width + c] = b[k * depth_stride + c * column_stride];
  };
#if HWY_TARGET != HWY_SCALAR
  const auto transpose = [&](auto d) HWY_ATTR {
    constexpr int64_t kSide = 16 / sizeof(T), kColumns = hn::MaxLanes(d);
    for (; column + kColumns <= columns; column += kColumns) {
      const T* from = b + column * column_stride;
      int64_t k = 0;
      for (; k + kSide <= depth; k += kSide) {
        TransposeBlocks(d, from + k, column_stride, packed + k * width + column, width);
      }
      for (int64_t i = 0; i < kColumns && k < depth; ++i) copy(k, column + i);
    }
  };
  if (depth_stride == 1) {
    transpose(Tag<T>());
    transpose(hn::FixedTag<T, 16 / sizeof(T)>());
  }
#endif
  for (; column < columns; ++column) copy(0, column);
}

// For contiguous columns of B, or neither contiguous.
template <typename T>
void PackColumns(const T* b, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, T* packed) {
  for (int64_t column = 0; column < columns; column += kPanel<T>) {
    const int64_t width = PanelWidth<T>(column, columns);
    const int64_t filled = std::min(width, columns - column);
    if (filled < width) std::fill_n(packed, depth * width, T{0});
    PackPanel(b + column * column_stride, depth, filled, depth_stride, column_stride, width, packed);
    packed += depth * width;
  }
}

template <typename T>
void PackPanels(const T* b, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, T* packed) {
  if (column_stride == 1) {
    PackRows(b, depth, columns, depth_stride, packed);
  } else {
    PackColumns(b, depth, columns, depth_stride, column_stride, packed);
  }
}

// Packs the rows of a tile of A, which are contiguous and row_stride apart, to packed[k * height + row].
template <typename T>
void PackTile(const T* a, int64_t rows, int64_t row_stride, int64_t depth, int height, T* packed) {
  if (rows < height) std::fill_n(packed, depth * height, T{0});
  PackPanel(a, depth, rows, int64_t{1}, row_stride, height, packed);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
