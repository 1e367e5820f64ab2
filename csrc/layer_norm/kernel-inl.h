// Layer normalisation of one row in three sweeps: the mean, the deviations from it and their squares, the result. RMS
// normalisation is the same with a mean of 0, without the first sweep. Rows are assumed to stay in cache; a later row
// is prefetched meanwhile, as memory would be idle otherwise. Gradients compute the moments again. Used by
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

// Rows whose squares overflow or underflow are multiplied by a power of two first, of which the result does not depend.
template <typename A>
struct LayerNormScale {
  static constexpr bool kSingle = std::is_same_v<A, float>;
  // With `down`, the square of the largest number is far from overflow, and the square of the smallest number whose
  // square overflows unscaled is far from underflow.
  static constexpr A down = kSingle ? A(0x1p-100) : A(0x1p-800);
  // With `up`, the square of the smallest number is normal. For rows of variance + eps below max_variance, where the
  // squares may lose bits; if such a row has a mean of max_mean or more, its entries are all equal.
  static constexpr A up = kSingle ? A(0x1p100) : A(0x1p600);
  static constexpr double max_variance = kSingle ? 0x1p-90 : 0x1p-960, max_mean = kSingle ? 0x1p20 : 0x1p-400;
  static constexpr double min_eps = kSingle ? 0x1p-240 : 0x1p-1020;
};

// What normalises a row: normal = ((x * scale - center) - rest) * inverse. kCentered: with the mean subtracted.
template <bool kCentered, typename A>
struct NormMoments {
  A scale, center, rest, inverse;

  template <class D, class Lanes, typename T>
  HWY_INLINE hn::Vec<D> Centered(D d, Lanes lanes, const T* x) const {
    const auto v = hn::Mul(lanes.Load(d, x), hn::Set(d, scale));
    return kCentered ? hn::Sub(hn::Sub(v, hn::Set(d, center)), hn::Set(d, rest)) : v;
  }
};

template <bool kCentered, typename T>
HWY_NOINLINE NormMoments<kCentered, Accumulator<T>> MomentsOfRow(const T* x, double eps, std::int64_t n,
                                                                 const T* next) {
  using A = Accumulator<T>;
  using Scale = LayerNormScale<A>;
  const hn::ScalableTag<A> d;
  const auto count = static_cast<double>(n);
  for (A scale = 1;;) {
    const auto scales = hn::Set(d, scale);
    const auto load = [&](auto lanes, std::int64_t i) HWY_ATTR { return hn::Mul(lanes.Load(d, x + i), scales); };
    const double mean = kCentered ? SumOfRow(d, n, load) / count : 0;
    const auto center = hn::Set(d, static_cast<A>(mean));
    const auto deviation = [&](auto lanes, std::int64_t i)
                               HWY_ATTR { return kCentered ? hn::Sub(load(lanes, i), center) : load(lanes, i); };
    const double rest = kCentered ? SumOfRow(d, n, deviation) / count : 0;
    const auto square = [&](auto lanes, std::int64_t i) HWY_ATTR {
      hwy::Prefetch(next + i);
      const auto v = deviation(lanes, i);
      return hn::Mul(v, v);
    };
    const double variance = SumOfRow(d, n, square) / count - rest * rest;
    // Must not become 0: a row of equal entries has to give beta, not NaN.
    const auto factor = static_cast<double>(scale);
    const double scaled_eps = eps > 0 ? std::max(eps * factor * factor, Scale::min_eps) : 0;
    if (scale == 1) {
      if (!(variance < std::numeric_limits<double>::infinity())) {
        scale = Scale::down;
        continue;
      }
      if (HWY_UNLIKELY(variance + scaled_eps < Scale::max_variance && std::abs(mean) < Scale::max_mean)) {
        scale = Scale::up;
        continue;
      }
    }
    return {scale, static_cast<A>(mean), static_cast<A>(rest),
            static_cast<A>(1 / std::sqrt(std::max(variance, 0.0) + scaled_eps))};
  }
}

// gamma and beta may be null.
template <bool kCentered, typename T>
void NormRow(const T* x, const T* gamma, const T* beta, double eps, std::int64_t n, T* out, bool streamed,
             const T* next) {
  const hn::ScalableTag<Accumulator<T>> d;
  const auto moments = MomentsOfRow<kCentered>(x, eps, n, next);
  const auto inverse = hn::Set(d, moments.inverse);
  const auto result = [&](auto lanes, std::int64_t i) HWY_ATTR {
    const auto centered = moments.Centered(d, lanes, x + i);
    const auto normal = hn::Mul(centered, inverse);
    if (gamma && beta) {
      lanes.Store(hn::MulAdd(normal, lanes.Load(d, gamma + i), lanes.Load(d, beta + i)), d, out + i);
    } else if (beta) {
      lanes.Store(hn::MulAdd(centered, inverse, lanes.Load(d, beta + i)), d, out + i);
    } else {
      lanes.Store(gamma ? hn::Mul(normal, lanes.Load(d, gamma + i)) : normal, d, out + i);
    }
  };
  if (streamed) {
    ForEachVectorStreamed(d, n, out, result);
  } else {
    ForEachVector(d, n, result);
  }
}

// With g = d_out * gamma: d_x = (g - mean(g) - normal * mean(g * normal)) * inverse * scale, without mean(g) unless
// kCentered. Adds d_out * normal to d_gamma and, if kCentered, d_out to d_beta.
template <bool kCentered, typename T>
void NormRowBackward(const T* d_out, const T* x, const T* gamma, double eps, std::int64_t n, T* d_x,
                     Accumulator<T>* d_gamma, Accumulator<T>* d_beta, bool streamed, const T* next,
                     const T* next_d_out) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto count = static_cast<double>(n);
  const auto moments = MomentsOfRow<kCentered>(x, eps, n, next);
  const auto inverse = hn::Set(d, moments.inverse), scale = hn::Set(d, moments.scale);
  const auto normal = [&](auto lanes, std::int64_t i)
                          HWY_ATTR { return hn::Mul(moments.Centered(d, lanes, x + i), inverse); };
  const auto scaled = [&](auto lanes, std::int64_t i, auto gradient)
                          HWY_ATTR { return gamma ? hn::Mul(gradient, lanes.Load(d, gamma + i)) : gradient; };
  double mean = 0;
  if constexpr (kCentered) {
    mean = SumOfRow(d, n, [&](auto lanes, std::int64_t i) HWY_ATTR {
      const auto gradient = lanes.Load(d, d_out + i);
      lanes.Store(hn::Add(lanes.Load(d, d_beta + i), gradient), d, d_beta + i);
      return scaled(lanes, i, gradient);
    });
  }
  const double along = SumOfRow(d, n, [&](auto lanes, std::int64_t i) HWY_ATTR {
    hwy::Prefetch(next_d_out + i);
    const auto gradient = lanes.Load(d, d_out + i), v = normal(lanes, i);
    lanes.Store(hn::MulAdd(gradient, v, lanes.Load(d, d_gamma + i)), d, d_gamma + i);
    return hn::Mul(scaled(lanes, i, gradient), v);
  });
  const auto means = hn::Set(d, static_cast<A>(mean / count)), shares = hn::Set(d, static_cast<A>(along / count));
  const auto result = [&](auto lanes, std::int64_t i) HWY_ATTR {
    const auto g = scaled(lanes, i, lanes.Load(d, d_out + i));
    const auto rest = hn::NegMulAdd(normal(lanes, i), shares, kCentered ? hn::Sub(g, means) : g);
    lanes.Store(hn::Mul(hn::Mul(rest, inverse), scale), d, d_x + i);
  };
  if (streamed) {
    ForEachVectorStreamed(d, n, d_x, result);
  } else {
    ForEachVector(d, n, result);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
