// Layer normalisation of one row in three sweeps: the mean, the deviations from it and their squares, the result. Rows
// are assumed to stay in cache; a later row is prefetched meanwhile, as memory would be idle otherwise. Used by
// layer_norm/kernel.cc.
//
// The mean is rounded to the accumulator type, an error that matters for rows far from zero. The sum of the deviations
// from the rounded mean c corrects both moments (Chan, Golub and LeVeque 1983, eq. 1.7):
//
//   mean = c + e,  e = sum(x - c) / n;   variance = sum((x - c)^2) / n - e^2
//
// If sums or squares overflow (in float32, from elements of 2^64 on), the row is scaled by a power of 2 and recomputed.

#if defined(HEADWISE_LAYER_NORM_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LAYER_NORM_KERNEL_INL_H_
#undef HEADWISE_LAYER_NORM_KERNEL_INL_H_
#else
#define HEADWISE_LAYER_NORM_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// With this scale, the square of the largest number is far from overflow, and the square of the smallest number whose
// square overflows unscaled is far from underflow.
template <typename A>
constexpr A kLayerNormScale = std::is_same_v<A, float> ? A(0x1p-100) : A(0x1p-800);

template <bool kScaled, typename T>
void LayerNormRowScaled(const T* x, const T* gamma, const T* beta, double eps, std::int64_t n, T* out, bool streamed,
                        const T* next) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto count = static_cast<double>(n);
  const auto load = [&](auto lanes, std::int64_t i) HWY_ATTR {
    const auto v = lanes.Load(d, x + i);
    return kScaled ? hn::Mul(v, hn::Set(d, kLayerNormScale<A>)) : v;
  };
  const auto center = hn::Set(d, static_cast<A>(SumOfRow(d, n, load) / count));
  const auto deviation = [&](auto lanes, std::int64_t i) HWY_ATTR { return hn::Sub(load(lanes, i), center); };
  const double rest = SumOfRow(d, n, deviation) / count;
  const auto square = [&](auto lanes, std::int64_t i) HWY_ATTR {
    hwy::Prefetch(next + i);
    const auto v = deviation(lanes, i);
    return hn::Mul(v, v);
  };
  const double variance = SumOfRow(d, n, square) / count - rest * rest;
  if constexpr (kScaled) {
    // Must not become 0: a constant row has to give beta, not NaN.
    const double scaled = eps * static_cast<double>(kLayerNormScale<A>) * static_cast<double>(kLayerNormScale<A>);
    eps = eps > 0 ? std::max(scaled, std::is_same_v<A, float> ? 0x1p-240 : 0x1p-1020) : 0;
  } else if (!(variance < std::numeric_limits<double>::infinity())) {
    return LayerNormRowScaled<true>(x, gamma, beta, eps, n, out, streamed, next);
  }
  const auto inverse = hn::Set(d, static_cast<A>(1 / std::sqrt(std::max(variance, 0.0) + eps)));
  const auto shift = hn::Set(d, static_cast<A>(rest));
  const auto result = [&](auto lanes, std::int64_t i) HWY_ATTR {
    const auto normal = hn::Mul(hn::Sub(deviation(lanes, i), shift), inverse);
    lanes.Store(hn::MulAdd(normal, lanes.Load(d, gamma + i), lanes.Load(d, beta + i)), d, out + i);
  };
  if (streamed) {
    ForEachVectorStreamed(d, n, out, result);
  } else {
    ForEachVector(d, n, result);
  }
}

template <typename T>
void LayerNormRow(const T* x, const T* gamma, const T* beta, double eps, std::int64_t n, T* out, bool streamed,
                  const T* next) {
  LayerNormRowScaled<false>(x, gamma, beta, eps, n, out, streamed, next);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
