// The activation functions on vectors, and their derivatives.
//
// All are x times a distribution function, Phi(x) or sigmoid(y(x)). Its value q at -|x| is computed with small relative
// error, and is 1 - q at |x|; so results have small relative errors down to the subnormal numbers, where
// x (1 + erf(x / sqrt(2))) / 2 cancels. For the derivatives, f'(|x|) = 1 - f'(-|x|). Products carry the factor
// 2^kExpShift of ScaledExp until the end.
//
//   Phi(-t) = exp(-t^2 / 2) R(t), R = P / Q
//
// P / Q are minimax rational functions on [0, 15] and [0, 40] (Remez' algorithm in 50 digits): degrees 4 / 5, relative
// error 7.9e-9, for float32, and 10 / 11, 7.2e-18, for float64. All their coefficients are positive. The rounding error
// of t^2 goes into the exponential.

#if defined(HEADWISE_ACTIVATION_FUNCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ACTIVATION_FUNCTIONS_INL_H_
#undef HEADWISE_ACTIVATION_FUNCTIONS_INL_H_
#else
#define HEADWISE_ACTIVATION_FUNCTIONS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where functions reach their limits: f(x) rounds to -0 below the negative of each number.
template <typename A>
struct ActivationTraits;

template <>
struct ActivationTraits<float> {
  static constexpr float kGelu = 15, kGeluTanh = 12, kSilu = 120;
  static constexpr std::uint32_t kHighHalf = 0xFFFF'F000;
  static constexpr float kP[] = {0x1p-1f, 0x1.c133d4p-2f, 0x1.77c018p-3f, 0x1.4d6a38p-5f, 0x1.0e2c8cp-8f};
  static constexpr float kQ[] = {0x1p0f, 0x1.acdc18p0f, 0x1.341dfap0f, 0x1.e15dc8p-2f, 0x1.a1e616p-4f, 0x1.529bf8p-7f};
};

template <>
struct ActivationTraits<double> {
  static constexpr double kGelu = 40, kGeluTanh = 22, kSilu = 800;
  static constexpr std::uint64_t kHighHalf = 0xFFFF'FFFF'F800'0000;
  static constexpr double kP[] = {0x1p-1,
                                  0x1.a618b59eabc0dp-1,
                                  0x1.5910155b2288p-1,
                                  0x1.6954365088ea3p-2,
                                  0x1.09ceb9356f43ap-3,
                                  0x1.1dbadf79f1f35p-5,
                                  0x1.c5d8a5c55c51p-8,
                                  0x1.07385763d621ep-10,
                                  0x1.ac46da350b447p-14,
                                  0x1.bc34737c97584p-18,
                                  0x1.c3177abd5a17fp-23};
  static constexpr double kQ[] = {0x1p0,
                                  0x1.392d6f9ea6b9bp1,
                                  0x1.666930411bc21p1,
                                  0x1.fb83a117aedd1p0,
                                  0x1.ef214bd47dc7ep-1,
                                  0x1.5e659a6bcbb3p-2,
                                  0x1.704864f5d26a7p-4,
                                  0x1.20950b5da2f6cp-6,
                                  0x1.4c1279d73abf9p-9,
                                  0x1.0cef4d3f18e6cp-12,
                                  0x1.165d37c9693f2p-16,
                                  0x1.1aae08369d806p-21};
};

// Not Min: NaN stays.
template <class D, class V>
HWY_INLINE V AtMost(D d, V x, hn::TFromD<D> limit) {
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, limit)), hn::Set(d, limit), x);
}

template <class D, class V, std::size_t kTerms>
HWY_INLINE V Horner(D d, V x, const hn::TFromD<D> (&coefficients)[kTerms]) {
  V sum = hn::Set(d, coefficients[kTerms - 1]);
  for (std::size_t i = kTerms - 1; i-- > 0;) sum = hn::MulAdd(sum, x, hn::Set(d, coefficients[i]));
  return sum;
}

// t^2 = square + the result, up to the rounding of the result.
template <class D, class V>
HWY_INLINE V ErrorOfSquare(D d, V t, V square) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::MulSub(t, t, square);
#else
  // The product of high halves is exact (Dekker 1971).
  const hn::RebindToUnsigned<D> du;
  const V high = hn::BitCast(d, hn::And(hn::BitCast(du, t), hn::Set(du, ActivationTraits<hn::TFromD<D> >::kHighHalf)));
  return hn::Add(hn::Sub(hn::Mul(high, high), square), hn::Mul(hn::Sub(t, high), hn::Add(t, high)));
#endif
}

// Functions of x by their values and derivatives; `slope` is computed with kSlope only.
struct Gelu {
  template <bool kSlope, class D, class V>
  static HWY_INLINE void Apply(D d, V x, V& value, V& slope) {
    using A = hn::TFromD<D>;
    using Traits = ActivationTraits<A>;
    const V unscale = hn::Set(d, ExpTraits<A>::kUnscale), one = hn::Set(d, A{1}), minus_half = hn::Set(d, A(-0.5));
    const V t = AtMost(d, hn::Abs(x), Traits::kGelu);
    const V square = hn::Mul(t, t);
    const V power = ScaledExpOfSum(d, hn::Mul(square, minus_half), hn::Mul(ErrorOfSquare(d, t, square), minus_half));
    const V q = hn::Mul(power, hn::Div(Horner(d, t, Traits::kP), Horner(d, t, Traits::kQ)));  // Phi(-t)
    const auto negative = hn::Lt(x, hn::Zero(d));
    const V minus_unscale = hn::Set(d, -ExpTraits<A>::kUnscale);
    value = hn::IfThenElse(negative, hn::Mul(hn::Mul(t, q), minus_unscale), hn::Mul(x, hn::NegMulAdd(q, unscale, one)));
    if constexpr (kSlope) {
      // f'(-t) = Phi(-t) - t exp(-t^2 / 2) / sqrt(2 pi)
      const V density = hn::Mul(power, hn::Set(d, A(0.398942280401432677939946)));
      const V left = hn::Mul(hn::NegMulAdd(t, density, q), unscale);
      slope = hn::IfThenElse(negative, left, hn::Sub(one, left));
    }
  }
};

// x sigmoid(y), from a = |x|, t = |y|, each up to a limit, and y'. t is at most -kMinExponent.
template <bool kSlope, class D, class V>
HWY_INLINE void WeightedSigmoid(D d, V x, V a, V t, V y_slope, V& value, V& slope) {
  using A = hn::TFromD<D>;
  const V unscale = hn::Set(d, ExpTraits<A>::kUnscale), one = hn::Set(d, A{1});
  const V minus_unscale = hn::Set(d, -ExpTraits<A>::kUnscale);
  const auto negative = hn::Lt(x, hn::Zero(d));
  const V power = ScaledExpOfSum(d, hn::Neg(t), hn::Zero(d));
  const V denominator = hn::MulAdd(power, unscale, one);  // sigmoid(t) = 1 / denominator
  const V ratio = hn::Div(hn::IfThenElse(negative, hn::Mul(a, power), x), denominator);
  value = hn::IfThenElse(negative, hn::Mul(ratio, minus_unscale), ratio);
  if constexpr (kSlope) {
    // f'(-a) = sigmoid(-t) (1 - a sigmoid(t) y')
    const V upper = hn::Div(one, denominator);
    const V rest = hn::NegMulAdd(hn::Mul(a, upper), y_slope, one);
    const V left = hn::Mul(hn::Mul(hn::Mul(power, upper), rest), unscale);
    slope = hn::IfThenElse(negative, left, hn::Sub(one, left));
  }
}

struct Silu {
  template <bool kSlope, class D, class V>
  static HWY_INLINE void Apply(D d, V x, V& value, V& slope) {
    using A = hn::TFromD<D>;
    const V a = AtMost(d, hn::Abs(x), ActivationTraits<A>::kSilu);
    WeightedSigmoid<kSlope>(d, x, a, a, hn::Set(d, A{1}), value, slope);
  }
};

struct GeluTanh {
  template <bool kSlope, class D, class V>
  static HWY_INLINE void Apply(D d, V x, V& value, V& slope) {
    using A = hn::TFromD<D>;
    constexpr double kLinear = 1.59576912160573071176, kCubic = kLinear * 0.044715;  // kLinear: 2 sqrt(2 / pi)
    const V a = AtMost(d, hn::Abs(x), ActivationTraits<A>::kGeluTanh);
    const V square = hn::Mul(a, a);
    const V linear = hn::Set(d, static_cast<A>(kLinear));
    const V t = hn::Mul(a, hn::MulAdd(square, hn::Set(d, static_cast<A>(kCubic)), linear));
    const V y_slope = hn::MulAdd(square, hn::Set(d, static_cast<A>(3 * kCubic)), linear);
    WeightedSigmoid<kSlope>(d, x, a, AtMost(d, t, -ExpTraits<A>::kMinExponent), y_slope, value, slope);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
