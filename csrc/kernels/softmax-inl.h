// Softmax, log-softmax and log-sum-exp of a lane of n numbers:
//
//   m = max_i x_i,  s = sum_i exp(x_i - m);   exp(x_i - m) / s,   x_i - m - log s,   m + log s
//
// An axis whose elements are side by side is swept row by row: maximum; exponentials and their sum; result. Any other
// is swept across: a block of neighbouring lanes at a time, one lane of the axis per lane of a vector.
//
// Everything that is not finite follows from the arithmetic. NaN in a lane may or may not become its maximum (targets
// differ), but it always becomes a NaN term and so a NaN sum. A maximum of +inf or -inf makes inf - inf, NaN, a term.
// Log-sum-exp alone has limits there, so it subtracts a finite number: -inf lanes then sum to 0, whose logarithm is
// -inf, and a term of +inf counts as 1, to leave m = +inf as it is.

#if defined(HEADWISE_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_SOFTMAX_INL_H_
#undef HEADWISE_KERNELS_SOFTMAX_INL_H_
#else
#define HEADWISE_KERNELS_SOFTMAX_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/exp-inl.h"
#include "kernels/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What log-sum-exp subtracts, and the argument of its exponential.
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

template <typename T>
void SoftmaxRow(const T* x, std::int64_t n, T* out) {
  const hn::ScalableTag<T> d;
  const auto max = hn::Set(d, MaxOfRow(d, x, n));
  const double sum = SumOfRow(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR {
    const auto term = ScaledExp(d, hn::Sub(lanes.Load(d, x + j), max));
    lanes.Store(term, d, out + j);
    return term;
  });
  const auto factor = hn::Set(d, static_cast<T>(1 / sum));
  ForEachVector(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR {
    lanes.Store(hn::Mul(lanes.Load(d, out + j), factor), d, out + j);
  });
}

template <typename T>
void LogSoftmaxRow(const T* x, std::int64_t n, T* out) {
  const hn::ScalableTag<T> d;
  const auto max = hn::Set(d, MaxOfRow(d, x, n));
  const auto term = [&](auto lanes, std::int64_t j)
                        HWY_ATTR { return ScaledExp(d, hn::Sub(lanes.Load(d, x + j), max)); };
  const double sum = SumOfRow(d, n, term);
  const auto log_sum = hn::Set(d, static_cast<T>(std::log(sum * ExpTraits<T>::kUnscale)));
  ForEachVector(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR {
    lanes.Store(hn::Sub(hn::Sub(lanes.Load(d, x + j), max), log_sum), d, out + j);
  });
}

template <typename T>
void LogSumExpRow(const T* x, std::int64_t n, T* out) {
  const hn::ScalableTag<T> d;
  const T max = MaxOfRow(d, x, n);
  const auto shift = FiniteMax(d, hn::Set(d, max));
  const double sum = SumOfRow(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR {
    return ScaledExp(d, AtMostZero(d, hn::Sub(lanes.Load(d, x + j), shift)));
  });
  *out = static_cast<T>(max + std::log(sum * ExpTraits<T>::kUnscale));
}

// ------------------------------------------------------------------------------------------------------------- columns

// log(sum / 2^kExpShift) for sums of at least 1, 0 and NaN.
template <class D, class V>
HWY_INLINE V LogOfSum(D d, V sum) {
  const V unscaled = hn::Mul(sum, hn::Set(d, ExpTraits<hn::TFromD<D>>::kUnscale));
  const V minus_inf_or_nan = hn::Div(hn::Set(d, hn::TFromD<D>{-1}), unscaled);
  return hn::IfThenElse(hn::Gt(unscaled, hn::Zero(d)), hn::Log(d, unscaled), minus_inf_or_nan);
}

// kVectors vectors of neighbouring lanes of the axis, or the part of one that `lanes` tells.
template <typename T, int kVectors, class Lanes>
struct ColumnBlock {
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;

  const T* x;
  std::int64_t x_stride;
  std::int64_t n;
  T* out;
  std::int64_t out_stride;
  Lanes lanes;

  HWY_INLINE V Load(const T* row, int v) const { return lanes.Load(D(), row + v * Width()); }
  HWY_INLINE void Store(V value, T* row, int v) const { lanes.Store(value, D(), row + v * Width()); }
  static HWY_INLINE std::int64_t Width() { return static_cast<std::int64_t>(hn::Lanes(D())); }

  HWY_INLINE void Max(V* max) const {
    for (int v = 0; v < kVectors; ++v) max[v] = hn::Set(D(), -std::numeric_limits<T>::infinity());
    for (std::int64_t i = 0; i < n; ++i) {
      for (int v = 0; v < kVectors; ++v) max[v] = hn::Max(max[v], Load(x + i * x_stride, v));
    }
  }

  // The sums of term(i, v). One accumulator per lane is all there is, so every 64 terms go into a compensated total
  // (Kahan 1965).
  template <class Term>
  HWY_INLINE void Sum(V* total, Term&& term) const {
    constexpr std::int64_t kTerms = 64;
    V lost[kVectors];
    for (int v = 0; v < kVectors; ++v) total[v] = lost[v] = hn::Zero(D());
    for (std::int64_t begin = 0; begin < n; begin += kTerms) {
      const std::int64_t end = begin + kTerms < n ? begin + kTerms : n;
      V sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(D());
      for (std::int64_t i = begin; i < end; ++i) {
        for (int v = 0; v < kVectors; ++v) sum[v] = hn::Add(sum[v], term(i, v));
      }
      for (int v = 0; v < kVectors; ++v) {
        const V rest = hn::Sub(sum[v], lost[v]);
        const V next = hn::Add(total[v], rest);
        lost[v] = hn::Sub(hn::Sub(next, total[v]), rest);
        total[v] = next;
      }
    }
  }

  HWY_INLINE void Softmax() const {
    V max[kVectors], sum[kVectors];
    Max(max);
    Sum(sum, [&](std::int64_t i, int v) HWY_ATTR {
      const V term = ScaledExp(D(), hn::Sub(Load(x + i * x_stride, v), max[v]));
      Store(term, out + i * out_stride, v);
      return term;
    });
    for (int v = 0; v < kVectors; ++v) sum[v] = hn::Div(hn::Set(D(), T{1}), sum[v]);
    for (std::int64_t i = 0; i < n; ++i) {
      T* const row = out + i * out_stride;
      for (int v = 0; v < kVectors; ++v) Store(hn::Mul(Load(row, v), sum[v]), row, v);
    }
  }

  HWY_INLINE void LogSoftmax() const {
    V max[kVectors], sum[kVectors];
    Max(max);
    const auto term = [&](std::int64_t i, int v)
                          HWY_ATTR { return ScaledExp(D(), hn::Sub(Load(x + i * x_stride, v), max[v])); };
    Sum(sum, term);
    for (int v = 0; v < kVectors; ++v) sum[v] = LogOfSum(D(), sum[v]);
    for (std::int64_t i = 0; i < n; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        Store(hn::Sub(hn::Sub(Load(x + i * x_stride, v), max[v]), sum[v]), out + i * out_stride, v);
      }
    }
  }

  HWY_INLINE void LogSumExp() const {
    V max[kVectors], shift[kVectors], sum[kVectors];
    Max(max);
    for (int v = 0; v < kVectors; ++v) shift[v] = FiniteMax(D(), max[v]);
    const auto term = [&](std::int64_t i, int v) HWY_ATTR {
      const V less = hn::Sub(Load(x + i * x_stride, v), shift[v]);
      return ScaledExp(D(), AtMostZero(D(), less));
    };
    Sum(sum, term);
    for (int v = 0; v < kVectors; ++v) Store(hn::Add(max[v], LogOfSum(D(), sum[v])), out, v);
  }
};

// Calls run(block) for blocks that cover the columns.
template <typename T, class Run>
HWY_INLINE void ForEachBlock(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                             std::int64_t out_stride, Run&& run) {
  constexpr int kVectors = 4;
  const auto width = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  std::int64_t p = 0;
  for (; p + kVectors * width <= columns; p += kVectors * width) {
    run(ColumnBlock<T, kVectors, AllLanes>{x + p, x_stride, n, out + p, out_stride, {}});
  }
  for (; p + width <= columns; p += width) {
    run(ColumnBlock<T, 1, AllLanes>{x + p, x_stride, n, out + p, out_stride, {}});
  }
  if (p < columns) {
    run(ColumnBlock<T, 1, FirstLanes>{x + p, x_stride, n, out + p, out_stride, {columns - p}});
  }
}

template <typename T>
void SoftmaxColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                    std::int64_t out_stride) {
  ForEachBlock(x, x_stride, n, columns, out, out_stride, [](const auto& block) HWY_ATTR { block.Softmax(); });
}
template <typename T>
void LogSoftmaxColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                       std::int64_t out_stride) {
  ForEachBlock(x, x_stride, n, columns, out, out_stride, [](const auto& block) HWY_ATTR { block.LogSoftmax(); });
}
template <typename T>
void LogSumExpColumns(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                      std::int64_t out_stride) {
  ForEachBlock(x, x_stride, n, columns, out, out_stride, [](const auto& block) HWY_ATTR { block.LogSumExp(); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
