// Softcap: score -> softcap * tanh(score / softcap) (Gemma 2, arXiv:2408.00118, section 2).

#if defined(HEADWISE_ATTENTION_MODIFIERS_SOFTCAP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_SOFTCAP_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_SOFTCAP_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_SOFTCAP_INL_H_
#endif

#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// On scalar targets hn::Tanh converts its argument to an integer, which is undefined for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TanhOrNaN(D d, V x) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  const auto nan = hn::IsNaN(x);
  return hn::IfThenElse(nan, x, hn::CallTanh(d, hn::IfThenZeroElse(nan, x)));
#else
  return hn::CallTanh(d, x);
#endif
}

template <typename T>
class Softcap {
 public:
  explicit Softcap(double softcap) : inverse_(static_cast<T>(1.0 / softcap)), softcap_(static_cast<T>(softcap)) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, std::int64_t /*j*/, std::int64_t /*left*/) const {
    return hn::Mul(TanhOrNaN(d, hn::Mul(score, hn::Set(d, inverse_))), hn::Set(d, softcap_));
  }

 private:
  T inverse_, softcap_;
};

// The derivative of the softcap, from its result: 1 - tanh^2, and exactly 0 where tanh is 1.
template <typename T>
class SoftcapDerivative {
 public:
  explicit SoftcapDerivative(double softcap)
      : inverse_(static_cast<T>(1.0 / softcap)), softcap_(static_cast<T>(softcap)) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V capped) const {
    const V tanh = hn::Mul(capped, hn::Set(d, inverse_));
    const auto saturated = hn::Ge(hn::Abs(capped), hn::Set(d, softcap_));
    return hn::IfThenZeroElse(saturated, hn::NegMulAdd(tanh, tanh, hn::Set(d, T{1})));
  }

 private:
  T inverse_, softcap_;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
