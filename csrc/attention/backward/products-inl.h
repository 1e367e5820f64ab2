// The five products of the backward pass on register tiles (matmul/fma-inl.h), in the accumulator type T: one copy of
// this code for all element types that share it.
//
// P (probabilities) and dS (gradients of the scores) of a block of queries and a block of keys are row-major, [queries]
// [keys]. Products read them in both roles, so that nothing computed is ever transposed: d_value += P^T d_output and
// d_key += dS^T query with row stride 1, d_query += dS key with depth stride 1. Only inputs are packed: key, query and
// d_output twice (transposed, and by rows), value once.
//
// For bfloat16 on AVX512_BF16 the two products of inputs, query key^T and d_output value^T, take pairs of bf16 numbers
// in place of numbers: exact products at twice the rate. P and dS stay in float32, because rounding them would add an
// error as large as that of the result; so do the three products that read them.

#if defined(HEADWISE_ATTENTION_BACKWARD_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_PRODUCTS_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_PRODUCTS_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_PRODUCTS_INL_H_
#endif

#include <algorithm>

#include "attention/backward/kernel.h"
#include "attention/exp-inl.h"
#include "attention/softmax-inl.h"
#include "base/targets.h"
#include "hwy/highway.h"
#include "matmul/bf16_dot-inl.h"
#include "matmul/bf16_policy.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A cache line more than the keys of a block, so that the rows of a tile do not fall on the same cache sets.
template <typename T>
constexpr int kBackwardStride = static_cast<int>(kBackwardKeys<T> + 64 / static_cast<int64_t>(sizeof(T)));

// Two heights of tiles instead of the four of the forward pass: each is code for every product, type and target.
constexpr int BackwardHeight(int64_t rows) { return rows <= kTileRows / 3 ? kTileRows / 3 : kTileRows; }

template <class Function>
HWY_INLINE void WithBackwardHeight(int64_t rows, const Function& function) {
  if (rows <= kTileRows / 3) return function(Int<kTileRows / 3>());
  function(Int<kTileRows>());
}

// Rows that tiles of `rows` rows may write.
constexpr int64_t PaddedRows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// exp(score - lse), 0 for a score of -inf also where lse is NaN. It is at most 1, which an lse of another precision may
// exceed.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Probability(D d, V score, V minus_lse) {
  using T = hn::TFromD<D>;
  V x = hn::Add(score, minus_lse);
  x = hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Zero(d), x);  // keeps NaN
  return hn::IfThenZeroElse(hn::Eq(score, hn::Set(d, kMinusInf<T>)), AttentionExp(d, x));
}

// p * x, but 0 where p is 0: a dropped key or query may hold NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V WhereKept(D d, V p, V x) {
  return hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), hn::Mul(p, x));
}

// Packing of `rows` rows of `width` numbers, not inlined: one copy of its code for all types and callers.
template <typename T>
HWY_NOINLINE void PackTransposed(const T* from, int64_t rows, int64_t stride, int64_t width, T* panels) {
  PackPanels(from, width, rows, int64_t{1}, stride, panels);
}
// Returns whether they are finite.
template <typename T>
HWY_NOINLINE bool PackByRows(const T* from, int64_t rows, int64_t stride, int64_t width, T* panels) {
  PackPanels(from, rows, width, stride, int64_t{1}, panels);
  return AllFinite(panels, rows * PackedColumns<T>(width));
}
template <typename T>
HWY_NOINLINE void PackTiles(const T* from, int64_t rows, int64_t stride, int64_t width, T* tiles) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, rows - r);
    PackTile(from + r * stride, count, stride, width, BackwardHeight(count), tiles + r * width);
  }
}

// to[0, n) += from[0, n): whole vectors, aligned.
template <typename T>
HWY_NOINLINE void AddRow(const T* from, int64_t n, T* to) {
  const Tag<T> d;
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    hn::Store(hn::Add(hn::Load(d, to + i), hn::Load(d, from + i)), d, to + i);
  }
}

template <typename T>
struct FromNothing {
  HWY_INLINE hn::Vec<Tag<T>> operator()(int, int) const { return hn::Zero(Tag<T>()); }
};

// Stores sums, multiplied by `scale` if kScaled.
template <typename T, bool kScaled>
struct StorePanel {
  T* to;
  T scale;
  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    for (int v = 0; v < kVectors; ++v) {
      T* const score = to + r * kBackwardStride<T> + v * kLanes<T>;
      hn::StoreU(kScaled ? hn::Mul(sums[v], hn::Set(d, scale)) : sums[v], d, score);
    }
  }
};

template <typename T>
struct AddPanel {
  T* to;
  int64_t stride;
  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    for (int v = 0; v < kVectors; ++v) {
      T* const sum = to + r * stride + v * kLanes<T>;
      hn::Store(hn::Add(hn::Load(d, sum), sums[v]), d, sum);
    }
  }
};

// scores[r][from, to) = scale A B, for the rows of a tile: A packed as [depth][height], B in panels of the packed
// columns, of which there are `columns`.
template <class Multiplier, bool kScaled, typename T>
HWY_INLINE void MultiplyTile(int64_t rows, int64_t depth, const T* a, const T* b, int64_t columns, int64_t from,
                             int64_t to, T scale, T* scores) {
  WithBackwardHeight(rows, [&](auto height) HWY_ATTR {
    constexpr int kHeight = decltype(height)::value;
    for (int64_t column = from; column < to; column += kPanel<T>) {
      const T* panel = b + column * depth;
      const StorePanel<T, kScaled> store{scores + column, scale};
      if (PanelWidth<T>(column, columns) == kPanel<T>) {
        GemmTile<kHeight, 2, 1, kHeight, Multiplier>(depth, a, panel, FromNothing<T>(), store);
      } else {
        GemmTile<kHeight, 1, 1, kHeight, Multiplier>(depth, a, panel, FromNothing<T>(), store);
      }
    }
  });
}

template <typename T>
HWY_NOINLINE void MultiplyScores(int64_t rows, int64_t depth, const T* a, const T* b, int64_t columns, int64_t from,
                                 int64_t to, T* scores) {
  MultiplyTile<FusedMultiplyAdd, false>(rows, depth, a, b, columns, from, to, T{1}, scores);
}

// Whether products of inputs take pairs of numbers of S, for the shapes whose forward pass does: `depth` counts 32-bit
// words then.
template <typename S>
bool MultipliesPairs([[maybe_unused]] const AttentionArgs<S>& args) {
#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
  const auto [batch, heads, queries, head_dim] = args.query.shape;
  const int64_t rows = heads / args.key.shape[1] * queries;
  return BackwardUsesPairs<S>(ChosenMatmulBackend()) &&
         AttentionBf16Pays(1, rows, args.key.shape[2], head_dim, args.value.shape[3]);
#else
  return false;
#endif
}

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
inline HWY_NOINLINE void MultiplyPairs(int64_t rows, int64_t depth, const float* a, const float* b, int64_t columns,
                                       int64_t from, int64_t to, float scale, float* scores) {
  MultiplyTile<DotMultiplier, true>(rows, depth, a, b, columns, from, to, scale, scores);
}
#endif

// Scores of a tile become probabilities. Not an epilogue of the product, in which a copy of the exponential for each
// register makes the code four times as large: the tile is in L1, and the sweep takes the same time.
template <typename T>
HWY_NOINLINE void ComputeProbabilities(int64_t rows, int64_t from, int64_t to, const T* minus_lse, T* scores) {
  const Tag<T> d;
  for (int64_t r = 0; r < rows; ++r, scores += kBackwardStride<T>) {
    const auto shift = hn::Set(d, minus_lse[r]);
    for (int64_t j = from; j < to; j += kPanel<T>) {
      const auto p0 = Probability(d, hn::Load(d, scores + j), shift);
      const auto p1 = Probability(d, hn::Load(d, scores + j + kLanes<T>), shift);
      hn::Store(p0, d, scores + j);
      hn::Store(p1, d, scores + j + kLanes<T>);
    }
  }
}

// Products of d_output and values become gradients of the scores.
template <typename T>
HWY_NOINLINE void ComputeScoreGradients(int64_t rows, int64_t from, int64_t to, const T* delta, const T* p, T* ds) {
  const Tag<T> d;
  for (int64_t r = 0; r < rows; ++r, p += kBackwardStride<T>, ds += kBackwardStride<T>) {
    const auto minus = hn::Set(d, delta[r]);
    for (int64_t j = from; j < to; j += kLanes<T>) {
      hn::Store(WhereKept(d, hn::Load(d, p + j), hn::Sub(hn::Load(d, ds + j), minus)), d, ds + j);
    }
  }
}

// A matrix B of `rows` rows and `columns` columns, packed by rows: panels [rows][panel].
template <typename T>
struct PackedRows {
  const T* data;
  int64_t rows, columns;
  bool finite;  // holds neither NaN nor infinity
};

// The product without the terms whose A is 0, as that of a pair that is not kept: 0 * NaN is NaN.
template <typename T>
HWY_NOINLINE void AddKeptTerms(int64_t rows, int64_t first, int64_t depth, const T* a, int64_t row_stride,
                               int64_t depth_stride, const PackedRows<T>& b, T* to, int64_t stride) {
  const Tag<T> d;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      const T a_rk = a[r * row_stride + k * depth_stride];
      if (a_rk == T{0}) continue;
      for (int64_t column = 0; column < b.columns; column += kPanel<T>) {
        const int64_t width = PanelWidth<T>(column, b.columns);
        const T* row = b.data + column * b.rows + (first + k) * width;
        for (int64_t v = 0; v < width; v += kLanes<T>) {
          T* const sum = to + r * stride + column + v;
          hn::Store(hn::MulAdd(hn::Set(d, a_rk), hn::Load(d, row + v), hn::Load(d, sum)), d, sum);
        }
      }
    }
  }
}

// to[r] += sum over k < depth of A[r, k] * B[first + k], for the rows of a tile.
template <int kRowStride, int kDepthStride, typename T>
HWY_NOINLINE void AddProduct(int64_t rows, int64_t first, int64_t depth, const T* a, const PackedRows<T>& b, T* to,
                             int64_t stride) {
  if (HWY_UNLIKELY(!b.finite)) {
    return AddKeptTerms<T>(rows, first, depth, a, kRowStride, kDepthStride, b, to, stride);
  }
  WithBackwardHeight(rows, [&](auto height) HWY_ATTR {
    constexpr int kHeight = decltype(height)::value;
    for (int64_t column = 0; column < b.columns; column += kPanel<T>) {
      const int64_t width = PanelWidth<T>(column, b.columns);
      const T* panel = b.data + column * b.rows + first * width;
      if (width == kPanel<T>) {
        GemmTile<kHeight, 2, kRowStride, kDepthStride>(depth, a, panel, FromNothing<T>(),
                                                       AddPanel<T>{to + column, stride});
      } else {
        GemmTile<kHeight, 1, kRowStride, kDepthStride>(depth, a, panel, FromNothing<T>(),
                                                       AddPanel<T>{to + column, stride});
      }
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
