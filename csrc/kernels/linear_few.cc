// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear_few.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/linear.h"
#include "kernels/linear_few-inl.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LinearFewKernel<T> kLinearFew{&LinearFewRowsScratchBytes<T>, &LinearFewRows<T>};

const LinearFewKernel<Float16>* LinearFewF16() { return &kLinearFew<Float16>; }
const LinearFewKernel<BFloat16>* LinearFewBF16() { return &kLinearFew<BFloat16>; }
const LinearFewKernel<float>* LinearFewF32() { return &kLinearFew<float>; }
const LinearFewKernel<double>* LinearFewF64() { return &kLinearFew<double>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearFewF16);
HWY_EXPORT(LinearFewBF16);
HWY_EXPORT(LinearFewF32);
HWY_EXPORT(LinearFewF64);

template <>
const LinearFewKernel<Float16>& GetLinearFewKernel() {
  return *HEADWISE_DISPATCH(LinearFewF16)();
}
template <>
const LinearFewKernel<BFloat16>& GetLinearFewKernel() {
  return *HEADWISE_DISPATCH(LinearFewBF16)();
}
template <>
const LinearFewKernel<float>& GetLinearFewKernel() {
  return *HEADWISE_DISPATCH(LinearFewF32)();
}
template <>
const LinearFewKernel<double>& GetLinearFewKernel() {
  return *HEADWISE_DISPATCH(LinearFewF64)();
}

}  // namespace headwise
#endif
