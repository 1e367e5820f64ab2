// The exponential of softmax and of activations: arguments are at most 0, and results are scaled by a power of two.
//
//   e^x = 2^k e^r,  k = round(x log2 e),  r = x - k ln 2 in [-ln2/2, ln2/2]
//
// ln 2 is split in two (Cody and Waite 1980) so that k * high is exact. e^r is 1 + r + r^2 q(r) with q of degree 4
// (float32, relative error 3.2e-9) or 9 (float64, 1.1e-17): minimax polynomials by Remez' algorithm in 60 digits. The
// total error is below 1 unit in the last place.
//
// k is rounded by adding 1.5 * 2^23 (2^52), which leaves it in the low bits of the sum; the exponent bias is part of
// the constant, so one shift gives 2^k. Results carry the factor 2^kExpShift: a softmax term whose quotient is
// subnormal is normal itself, and is rounded once, by the final division.

#if defined(HEADWISE_SIMD_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_SIMD_EXP_INL_H_
#undef HEADWISE_SIMD_EXP_INL_H_
#else
#define HEADWISE_SIMD_EXP_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  static constexpr int kExpShift = 64;
  static constexpr int kMantissaBits = 23;
  static constexpr float kUnscale = 0x1p-64f;
  static constexpr float kRound = 0x1.8p23f + 127 + kExpShift;
  static constexpr float kLowest = -104.0f;  // below, e^x < 2^-150 rounds to 0
  static constexpr float kMinExponent = -120.0f;
  static constexpr float kMinusLn2High = -0x1.62e4p-1f;
  static constexpr float kMinusLn2Low = -0x1.7f7d1cp-20f;

  template <class D, class V>
  static HWY_INLINE V Polynomial(D d, V r) {
    const V r2 = hn::Mul(r, r);
    const V q01 = hn::MulAdd(hn::Set(d, 0x1.55548cp-3f), r, hn::Set(d, 0x1.fffffcp-2f));
    const V q23 = hn::MulAdd(hn::Set(d, 0x1.123dep-7f), r, hn::Set(d, 0x1.555858p-5f));
    return hn::MulAdd(hn::MulAdd(hn::Set(d, 0x1.6ac6b2p-10f), r2, q23), r2, q01);
  }
};

template <>
struct ExpTraits<double> {
  static constexpr int kExpShift = 512;
  static constexpr int kMantissaBits = 52;
  static constexpr double kUnscale = 0x1p-512;
  static constexpr double kRound = 0x1.8p52 + 1023 + kExpShift;
  static constexpr double kLowest = -746.0;  // below, e^x < 2^-1075
  static constexpr double kMinExponent = -800.0;
  static constexpr double kMinusLn2High = -0x1.62e42fefa38p-1;
  static constexpr double kMinusLn2Low = -0x1.ef35793c7673p-45;

  template <class D, class V>
  static HWY_INLINE V Polynomial(D d, V r) {
    const V r2 = hn::Mul(r, r), r4 = hn::Mul(r2, r2);
    const V q01 = hn::MulAdd(hn::Set(d, 0x1.55555555554f9p-3), r, hn::Set(d, 0x1.000000000000ap-1));
    const V q23 = hn::MulAdd(hn::Set(d, 0x1.1111111127d12p-7), r, hn::Set(d, 0x1.555555555083ep-5));
    const V q45 = hn::MulAdd(hn::Set(d, 0x1.a01a012a0de71p-13), r, hn::Set(d, 0x1.6c16c18438ad1p-10));
    const V q67 = hn::MulAdd(hn::Set(d, 0x1.71df25b64c759p-19), r, hn::Set(d, 0x1.a01999e26bfa7p-16));
    const V q89 = hn::MulAdd(hn::Set(d, 0x1.ad7f395612954p-26), r, hn::Set(d, 0x1.28ad9b7dbaf49p-22));
    const V q47 = hn::MulAdd(q67, r2, q45);
    return hn::MulAdd(hn::MulAdd(q89, r4, q47), r4, hn::MulAdd(q23, r2, q01));
  }
};

// x = k ln 2 + r, with k in the low bits of `biased`, beside the exponent bias.
template <class V>
struct ReducedExponent {
  V biased, r;
};

template <class D, class V>
HWY_INLINE ReducedExponent<V> ReduceExponent(D d, V x) {
  using T = hn::TFromD<D>;
  using Traits = ExpTraits<T>;
  const V round = hn::Set(d, Traits::kRound);
  const V biased = hn::MulAdd(x, hn::Set(d, static_cast<T>(1.4426950408889634)), round);
  const V k = hn::Sub(biased, round);
  return {biased, hn::MulAdd(k, hn::Set(d, Traits::kMinusLn2Low), hn::MulAdd(k, hn::Set(d, Traits::kMinusLn2High), x))};
}

// 2^(k + kExpShift) e^r.
template <class D, class V>
HWY_INLINE V ScaledPower(D d, V biased, V r) {
  using T = hn::TFromD<D>;
  using Traits = ExpTraits<T>;
  const hn::RebindToSigned<D> di;
  const V mantissa = hn::Add(hn::MulAdd(Traits::Polynomial(d, r), hn::Mul(r, r), r), hn::Set(d, T{1}));
  const V power = hn::BitCast(d, hn::ShiftLeft<Traits::kMantissaBits>(hn::BitCast(di, biased)));
  return hn::Mul(mantissa, power);
}

// 2^kExpShift * e^x for x <= 0 and NaN; 0 for -inf. Unspecified for x > 0.
template <class D, class V>
HWY_INLINE V ScaledExp(D d, V x) {
  const auto [biased, r] = ReduceExponent(d, x);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, ExpTraits<hn::TFromD<D>>::kLowest)), ScaledPower(d, biased, r));
}

// 2^kExpShift * e^(x + low) without ScaledExp's lower bound, for kMinExponent <= x <= 0 and NaN. `low` is what rounding
// has taken from x.
template <class D, class V>
HWY_INLINE V ScaledExpOfSum(D d, V x, V low) {
  const auto [biased, r] = ReduceExponent(d, x);
  return ScaledPower(d, biased, hn::Add(r, low));
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
