// e^x for x <= 20, not beyond: in attention x is a score minus the max of its row, or minus nearly the max.
//
// x log2(e) = n + f with n an integer and |f| <= 1/2. 2^f is a polynomial with minimax relative error (Remez exchange;
// degree 5: 7.5e-8, degree 11: 3e-18); 2^n is written into the exponent bits. Adding 1.5 * 2^mantissa_bits + bias
// rounds to n and leaves n + bias in the low bits; both steps fuse with the multiplication, so f has one rounding. The
// error of log2(e) itself grows with |x|, while e^x vanishes. NaN stays NaN.
//
// Below 2^-87 (float64: 2^-623), and at -inf, the result is 0. Such a weight changes no sum, but its products may be
// subnormal, which cost a hundred cycles each (a fifth of the time of attention with ALiBi, where they are common). The
// bias is the type's bias minus a shift, so that the exponent bits are 0 at the limit; the polynomial's coefficients
// contain 2^shift.
//
// simd/exp-inl.h has an exponential accurate to the last place for all x. backends/interleaved_softmax-inl.h takes the
// steps of AttentionExp one by one.

#if defined(HEADWISE_ATTENTION_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_EXP_INL_H_
#undef HEADWISE_ATTENTION_EXP_INL_H_
#else
#define HEADWISE_ATTENTION_EXP_INL_H_
#endif

#include <iterator>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
constexpr T kLog2E = static_cast<T>(1.4426950408889634074);

template <typename T>
struct AttentionExpConstants;

template <>
struct AttentionExpConstants<float> {
  static constexpr float kLowest = -60.3f;  // n is -87
  static constexpr float kRound = 12582912.0f + 127.0f - 40.0f;
  static constexpr float kShift = 0x1p40f;
  static constexpr int kMantissaBits = 23;
  static constexpr float kCoefficients[] = {1.0000000716546416f,   0.69314696706526493f,   0.24022119723969178f,
                                            0.055507132728753912f, 0.0096755413310213911f, 0.0013276472167819943f};
};

template <>
struct AttentionExpConstants<double> {
  static constexpr double kLowest = -431.83;  // n is -623
  static constexpr double kRound = 6755399441055744.0 + 1023.0 - 400.0;
  static constexpr double kShift = 0x1p400;
  static constexpr int kMantissaBits = 52;
  static constexpr double kCoefficients[] = {
      0.9999999999999999971,    0.69314718055994533046,   0.24022650695910156205,    0.055504108664819921483,
      0.0096181291075883350833, 0.0013333558146789950323, 0.00015403530462514613026, 0.0000152527334899608046,
      1.3215433089594629037e-6, 1.0178198033328527662e-7, 7.0741056262456593708e-9,  4.4352809446103361611e-10};
};

// max(x, low), but NaN where x is NaN. x86's max returns its second operand if either is NaN; Highway's on NEON and its
// emulated one return the number.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ClampBelow(D d, V x, hn::TFromD<D> low) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  return hn::Max(hn::Set(d, low), x);
#else
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, low)), hn::Set(d, low), x);
#endif
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V AttentionExp(D d, V x) {
  using T = hn::TFromD<D>;
  using Constants = AttentionExpConstants<T>;
  x = ClampBelow(d, x, Constants::kLowest);
  const V round = hn::Set(d, Constants::kRound), log2e = hn::Set(d, kLog2E<T>);
  const V n = hn::MulAdd(x, log2e, round);  // n + bias in the low bits
  const V f = hn::MulSub(x, log2e, hn::Sub(n, round));

  constexpr int kDegree = static_cast<int>(std::size(Constants::kCoefficients)) - 1;
  V power = hn::Set(d, Constants::kShift * Constants::kCoefficients[kDegree]);
#pragma GCC unroll 16
  for (int i = kDegree - 1; i >= 0; --i) {
    power = hn::MulAdd(power, f, hn::Set(d, Constants::kShift * Constants::kCoefficients[i]));
  }
  const hn::RebindToUnsigned<D> bits;
  return hn::Mul(power, hn::BitCast(d, hn::ShiftLeft<Constants::kMantissaBits>(hn::BitCast(bits, n))));
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
