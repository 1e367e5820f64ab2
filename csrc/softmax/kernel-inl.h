// Softmax, log-softmax and log-sum-exp of n elements along an axis:
//
//   m = max_i x_i,  s = sum_i exp(x_i - m);   exp(x_i - m) / s,   x_i - m - log s,   m + log s
//
// Rows (the axis is contiguous): three sweeps per row, for the maximum, the exponentials with their sum, and the
// result. A long row is split into parts with maxima m_p and sums s_p: m = max_p m_p, s = sum_p s_p exp(m_p - m), so
// memory is read once for both (Milakov and Gimelshein 2018, arXiv:1805.02867). Columns (any other axis): blocks of
// adjacent columns, one column per lane of a vector. Used by softmax/kernel.cc.
//
// 16-bit types are computed in float and only results are rounded: exponentials are never stored in `out`.
//
// Results that are not finite follow from the arithmetic. A NaN may or may not become the maximum (targets differ), but
// its term is NaN, and so is the sum. If the maximum is +inf or -inf, inf - inf makes a NaN term. Log-sum-exp has
// limits in these cases, so it subtracts a finite number: only -inf sums to 0, whose logarithm is -inf, and a term of
// +inf counts as 1, so that the result is m = +inf.

#if defined(HEADWISE_SOFTMAX_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_SOFTMAX_KERNEL_INL_H_
#undef HEADWISE_SOFTMAX_KERNEL_INL_H_
#else
#define HEADWISE_SOFTMAX_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/interruption.h"
#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "simd/exp-inl.h"
#include "simd/rows-inl.h"
#include "softmax/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The number that log-sum-exp subtracts, and the argument of its exponential.
template <class D, class V>
HWY_INLINE V FiniteMax(D d, V max) {
  const V limit = hn::Set(d, std::numeric_limits<hn::TFromD<D>>::max());
  return hn::Max(hn::Min(max, limit), hn::Neg(limit));
}
template <class D, class V>
HWY_INLINE V AtMostZero(D d, V x) {
  return hn::IfThenZeroElse(hn::Gt(x, hn::Zero(d)), x);  // not Min: NaN stays
}

// ---------------------------------------------------------------------------------------------------------------- rows

// Calls visit(x, next, out) for each row. `next` is the row to prefetch: the following one, or a later one if rows are
// short. Hardware prefetchers stop at page boundaries, and sweeps over a row in cache leave memory idle.
template <typename T, class Visit>
HWY_INLINE void ForEachRow(const SoftmaxRows<T>& rows, Visit&& visit) {
  constexpr std::int64_t kAhead = (8 << 10) / sizeof(T);
  const std::int64_t ahead = rows.n >= kAhead ? 1 : kAhead / std::max<std::int64_t>(rows.n, 1);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    visit(rows.x + r * rows.x_stride, rows.x + std::min(r + ahead, rows.count - 1) * rows.x_stride,
          rows.out + r * rows.out_stride);
  }
}

// The array that holds the exponentials of a row.
template <typename T>
HWY_INLINE Accumulator<T>* Terms(const SoftmaxRows<T>& rows, [[maybe_unused]] T* out) {
  if constexpr (kIs16Bit<T>) {
    return rows.terms;
  } else {
    return rows.streamed ? rows.terms : out;
  }
}

// Rows shorter than a vector: the three sweeps in registers.
template <typename T>
HWY_INLINE void SoftmaxOfShortRows(const SoftmaxRows<T>& rows) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const FirstLanes lanes{rows.n};
  ForEachRow(rows, [&](const T* x, const T* next, T* out) HWY_ATTR {
    hwy::Prefetch(next);
    const auto values = lanes.Load(d, x);
    const auto lowest = hn::Set(d, -std::numeric_limits<A>::infinity());
    const auto term = ScaledExp(d, hn::Sub(values, hn::Set(d, MaxLane(d, lanes.Or(d, values, lowest)))));
    const double sum = hn::GetLane(hn::SumOfLanes(d, lanes.Or(d, term, hn::Zero(d))));
    lanes.Store(hn::Mul(term, hn::Set(d, static_cast<A>(1 / sum))), d, out);
  });
}

template <typename T>
void SoftmaxOfRows(const SoftmaxRows<T>& rows) {
  const hn::ScalableTag<Accumulator<T>> d;
  if (rows.n == 0) return;
  if (rows.n < static_cast<std::int64_t>(hn::Lanes(d))) return SoftmaxOfShortRows(rows);
  ForEachRow(rows, [&](const T* x, const T* next, T* out) HWY_ATTR {
    Accumulator<T>* const terms = Terms(rows, out);
    const auto max = hn::Set(d, MaxOfRow(d, x, rows.n));
    const double sum = SumOfRow(d, rows.n, [&](auto lanes, std::int64_t j) HWY_ATTR {
      hwy::Prefetch(next + j);
      const auto term = ScaledExp(d, hn::Sub(lanes.Load(d, x + j), max));
      lanes.Store(term, d, terms + j);
      return term;
    });
    const auto factor = hn::Set(d, static_cast<Accumulator<T>>(1 / sum));
    const auto scale = [&](auto lanes, std::int64_t j)
                           HWY_ATTR { lanes.Store(hn::Mul(lanes.Load(d, terms + j), factor), d, out + j); };
    if (rows.streamed) {
      ForEachVectorStreamed(d, rows.n, out, scale);
    } else {
      ForEachVector(d, rows.n, scale);
    }
  });
  if (rows.streamed) hwy::FlushStream();
}

// Infinities are clamped, so that a part of only -inf, or one with +inf, does not make the sum of the row NaN.
template <typename T>
HWY_NOINLINE SoftmaxPart<Accumulator<T>> PartOfRow(const T* x, std::int64_t n, const T* next) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const A max = MaxOfRow(d, x, n);
  const auto shift = FiniteMax(d, hn::Set(d, max));
  const auto sum = [&](auto argument) HWY_ATTR {
    return SumOfRow(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR {
      hwy::Prefetch(next + j);
      return ScaledExp(d, argument(hn::Sub(lanes.Load(d, x + j), shift)));
    });
  };
  const bool clamp = max == std::numeric_limits<A>::infinity();
  return {max,
          clamp ? sum([&](auto less) HWY_ATTR { return AtMostZero(d, less); }) : sum([](auto less) { return less; })};
}

// With an infinite maximum every result is NaN, as in the formula.
template <typename A>
HWY_INLINE double SumOrNaN(SoftmaxPart<A> whole) {
  return std::isfinite(whole.max) ? whole.sum : std::numeric_limits<double>::quiet_NaN();
}

template <typename T>
HWY_INLINE void WriteSoftmax(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto max = hn::Set(d, whole.max);
  const auto factor = hn::Set(d, static_cast<A>(1 / SumOrNaN(whole)));
  const auto result = [&](auto lanes, std::int64_t j) HWY_ATTR {
    lanes.Store(hn::Mul(ScaledExp(d, hn::Sub(lanes.Load(d, x + j), max)), factor), d, out + j);
  };
  if (streamed) {
    ForEachVectorStreamed(d, n, out, result);
  } else {
    ForEachVector(d, n, result);
  }
}

template <typename T>
HWY_INLINE void WriteLogSoftmax(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto max = hn::Set(d, whole.max);
  const auto log_sum = hn::Set(d, static_cast<A>(std::log(SumOrNaN(whole) * ExpTraits<A>::kUnscale)));
  const auto result = [&](auto lanes, std::int64_t j)
                          HWY_ATTR { lanes.Store(hn::Sub(hn::Sub(lanes.Load(d, x + j), max), log_sum), d, out + j); };
  if (streamed) {
    ForEachVectorStreamed(d, n, out, result);
  } else {
    ForEachVector(d, n, result);
  }
}

template <typename T>
HWY_INLINE void WriteLogSumExp(const T*, std::int64_t, SoftmaxPart<Accumulator<T>> whole, T* out, bool) {
  using A = Accumulator<T>;
  const auto result = static_cast<A>(whole.max + std::log(whole.sum * ExpTraits<A>::kUnscale));
  if constexpr (kIs16Bit<T>) {
    Narrow(&result, 1, out);
  } else {
    *out = result;
  }
}

template <typename T>
using Write = void(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed);

template <typename T, Write<T> kWrite>
void Finish(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed) {
  kWrite(x, n, whole, out, streamed);
  if (streamed) hwy::FlushStream();
}

// Rows that are one part each.
template <typename T, Write<T> kWrite>
void InOnePart(const SoftmaxRows<T>& rows) {
  ForEachRow(rows, [&](const T* x, const T* next, T* out)
                       HWY_ATTR { kWrite(x, rows.n, PartOfRow(x, rows.n, next), out, rows.streamed); });
  if (rows.streamed) hwy::FlushStream();
}

// ------------------------------------------------------------------------------------------------------------- columns

// log(sum / 2^kExpShift) for a sum that is at least 1, 0 or NaN.
template <class D, class V>
HWY_INLINE V LogOfSum(D d, V sum) {
  const V unscaled = hn::Mul(sum, hn::Set(d, ExpTraits<hn::TFromD<D>>::kUnscale));
  const V minus_inf_or_nan = hn::Div(hn::Set(d, hn::TFromD<D>{-1}), unscaled);
  return hn::IfThenElse(hn::Gt(unscaled, hn::Zero(d)), hn::Log(d, unscaled), minus_inf_or_nan);
}

// Rows [row, row_end) of kVectors vectors of columns from `column` on; of a single vector, only the columns in `lanes`.
// The state of a column (maximum or sum) is of type A.
template <typename A, int kVectors, class Lanes>
struct ColumnTile {
  using D = hn::ScalableTag<A>;
  using V = hn::Vec<D>;

  std::int64_t row, row_end, column;
  Lanes lanes;

  HWY_INLINE std::int64_t Column(int v) const { return column + v * static_cast<std::int64_t>(hn::Lanes(D())); }
  template <typename T>
  HWY_INLINE V Load(const T* from, int v) const {
    return lanes.Load(D(), from + Column(v));
  }
  template <typename T>
  HWY_INLINE void Store(V value, T* to, int v) const {
    lanes.Store(value, D(), to + Column(v));
  }

  // Calls step(i, v) for every row i and vector v.
  template <class Step>
  HWY_INLINE void ForEach(Step&& step) const {
    for (std::int64_t i = row; i < row_end; ++i) {
      for (int v = 0; v < kVectors; ++v) step(i, v);
    }
  }

  // state = step(state, i, v) for every row, where `state` has one element per column.
  template <class Step>
  HWY_INLINE void Update(A* state, Step&& step) const {
    V values[kVectors];
    for (int v = 0; v < kVectors; ++v) values[v] = hn::Load(D(), state + Column(v));
    ForEach([&](std::int64_t i, int v) HWY_ATTR { values[v] = step(values[v], i, v); });
    for (int v = 0; v < kVectors; ++v) hn::Store(values[v], D(), state + Column(v));
  }

  // Sums term(i, v) over the rows and adds the sum to a compensated total (Kahan 1965).
  template <class Term>
  HWY_INLINE void Add(A* total, A* lost, Term&& term) const {
    V sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(D());
    ForEach([&](std::int64_t i, int v) HWY_ATTR { sum[v] = hn::Add(sum[v], term(i, v)); });
    for (int v = 0; v < kVectors; ++v) {
      const V old = hn::Load(D(), total + Column(v));
      const V rest = hn::Sub(sum[v], hn::Load(D(), lost + Column(v)));
      const V next = hn::Add(old, rest);
      hn::Store(hn::Sub(hn::Sub(next, old), rest), D(), lost + Column(v));
      hn::Store(next, D(), total + Column(v));
    }
  }
};

// Calls visit(tile) for tiles that cover n rows of columns. Rows may be pages apart, so kRows of them are read
// together, from the first column to the last: as many streams as hardware prefetchers follow.
template <typename A, class Visit>
HWY_INLINE void ForEachTile(std::int64_t n, std::int64_t columns, Visit&& visit) {
  constexpr std::int64_t kRows = 16;
  constexpr int kVectors = 4;
  const auto width = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<A>()));
  constexpr std::int64_t kAskingRows = 1024;  // at most 2^18 elements, which take the scalar target about 8 ms
  for (std::int64_t row = 0; row < n; row += kRows) {
    if (row % kAskingRows == kAskingRows - kRows && Interrupted(10.0 * kAskingRows * static_cast<double>(columns)))
      return;
    const std::int64_t row_end = std::min(n, row + kRows);
    std::int64_t p = 0;
    for (; p + kVectors * width <= columns; p += kVectors * width) {
      visit(ColumnTile<A, kVectors, AllLanes>{row, row_end, p, {}});
    }
    for (; p + width <= columns; p += width) visit(ColumnTile<A, 1, AllLanes>{row, row_end, p, {}});
    if (p < columns) visit(ColumnTile<A, 1, FirstLanes>{row, row_end, p, {columns - p}});
  }
}

// States of `columns` columns, padded to whole vectors; the padding is computed and ignored.
template <typename A>
HWY_INLINE std::int64_t States(std::int64_t columns) {
  const auto width = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<A>()));
  return (columns + width - 1) / width * width;
}

template <typename T>
HWY_NOINLINE void MaxOfColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns,
                               Accumulator<T>* max) {
  using A = Accumulator<T>;
  std::fill_n(max, States<A>(columns), -std::numeric_limits<A>::infinity());
  ForEachTile<A>(n, columns, [&](const auto& tile) HWY_ATTR {
    tile.Update(max, [&](auto so_far, std::int64_t i, int v)
                         HWY_ATTR { return hn::Max(so_far, tile.Load(x + i * x_stride, v)); });
  });
}

// The sum of term(tile, i, v) down the columns.
template <typename A, class Term>
HWY_INLINE void SumOfColumns(std::int64_t n, std::int64_t columns, A* sum, Term&& term) {
  HWY_ALIGN A lost[kMaxColumns];
  std::fill_n(lost, States<A>(columns), A{0});
  std::fill_n(sum, States<A>(columns), A{0});
  ForEachTile<A>(n, columns, [&](const auto& tile) HWY_ATTR {
    tile.Add(sum, lost, [&](std::int64_t i, int v) HWY_ATTR { return term(tile, i, v); });
  });
}

// Exponentials are stored in `out`, or recomputed for 16-bit types, which cannot hold them.
template <typename T>
void SoftmaxColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                    std::int64_t out_stride) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  HWY_ALIGN A max[kMaxColumns], sum[kMaxColumns];
  MaxOfColumns(x, x_stride, n, columns, max);
  const auto term = [&](const auto& tile, std::int64_t i, int v) HWY_ATTR {
    return ScaledExp(d, hn::Sub(tile.Load(x + i * x_stride, v), hn::Load(d, max + tile.Column(v))));
  };
  SumOfColumns(n, columns, sum, [&](const auto& tile, std::int64_t i, int v) HWY_ATTR {
    const auto result = term(tile, i, v);
    if constexpr (!kIs16Bit<T>) tile.Store(result, out + i * out_stride, v);
    return result;
  });
  ForEachVector(d, States<A>(columns), [&](auto, std::int64_t p) HWY_ATTR {
    hn::Store(hn::Div(hn::Set(d, A{1}), hn::Load(d, sum + p)), d, sum + p);
  });
  ForEachTile<A>(n, columns, [&](const auto& tile) HWY_ATTR {
    tile.ForEach([&](std::int64_t i, int v) HWY_ATTR {
      T* const row = out + i * out_stride;
      const auto factor = hn::Load(d, sum + tile.Column(v));
      if constexpr (kIs16Bit<T>) {
        tile.Store(hn::Mul(term(tile, i, v), factor), row, v);
      } else {
        tile.Store(hn::Mul(tile.Load(row, v), factor), row, v);
      }
    });
  });
}

template <typename T>
void LogSoftmaxColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                       std::int64_t out_stride) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  HWY_ALIGN A max[kMaxColumns], sum[kMaxColumns];
  MaxOfColumns(x, x_stride, n, columns, max);
  const auto less_max = [&](const auto& tile, std::int64_t i, int v) HWY_ATTR {
    return hn::Sub(tile.Load(x + i * x_stride, v), hn::Load(d, max + tile.Column(v)));
  };
  SumOfColumns(n, columns, sum,
               [&](const auto& tile, std::int64_t i, int v) HWY_ATTR { return ScaledExp(d, less_max(tile, i, v)); });
  ForEachVector(d, States<A>(columns),
                [&](auto, std::int64_t p) HWY_ATTR { hn::Store(LogOfSum(d, hn::Load(d, sum + p)), d, sum + p); });
  ForEachTile<A>(n, columns, [&](const auto& tile) HWY_ATTR {
    tile.ForEach([&](std::int64_t i, int v) HWY_ATTR {
      tile.Store(hn::Sub(less_max(tile, i, v), hn::Load(d, sum + tile.Column(v))), out + i * out_stride, v);
    });
  });
}

template <typename T>
void LogSumExpColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out, std::int64_t) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  HWY_ALIGN A max[kMaxColumns], sum[kMaxColumns];
  MaxOfColumns(x, x_stride, n, columns, max);
  SumOfColumns(n, columns, sum, [&](const auto& tile, std::int64_t i, int v) HWY_ATTR {
    const auto shift = FiniteMax(d, hn::Load(d, max + tile.Column(v)));
    return ScaledExp(d, AtMostZero(d, hn::Sub(tile.Load(x + i * x_stride, v), shift)));
  });
  ForEachVector(d, columns, [&](auto lanes, std::int64_t p) HWY_ATTR {
    lanes.Store(hn::Add(hn::Load(d, max + p), LogOfSum(d, hn::Load(d, sum + p))), d, out + p);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
