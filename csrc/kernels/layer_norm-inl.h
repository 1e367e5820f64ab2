// Layer normalisation, one row at a time: the mean, then the deviations from it and their squares, then the result.
// Rows are short enough to stay in cache; the next one is fetched meanwhile, or memory would be idle.
//
// The mean is summed and rounded in the accumulator's type, and a row far from zero feels that. The sum of the
// deviations from the rounded mean c corrects both moments (Chan, Golub and LeVeque 1983, eq. 1.7):
//
//   mean = c + e,  e = sum(x - c) / n;   variance = sum((x - c)^2) / n - e^2

#if defined(HEADWISE_KERNELS_LAYER_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_LAYER_NORM_INL_H_
#undef HEADWISE_KERNELS_LAYER_NORM_INL_H_
#else
#define HEADWISE_KERNELS_LAYER_NORM_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
void LayerNormRow(const T* x, const Accumulator<T>* gamma, const Accumulator<T>* beta, double eps, std::int64_t n,
                  T* out, bool streamed, const T* next) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto count = static_cast<double>(n);
  const auto load = [&](auto lanes, std::int64_t i) HWY_ATTR { return lanes.Load(d, x + i); };
  const auto center = hn::Set(d, static_cast<A>(SumOfRow(d, n, load) / count));
  const auto deviation = [&](auto lanes, std::int64_t i) HWY_ATTR { return hn::Sub(load(lanes, i), center); };
  const double rest = SumOfRow(d, n, deviation) / count;
  const auto square = [&](auto lanes, std::int64_t i) HWY_ATTR {
    hwy::Prefetch(next + i);
    const auto v = deviation(lanes, i);
    return hn::Mul(v, v);
  };
  const double variance = SumOfRow(d, n, square) / count - rest * rest;
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

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
