// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/linear-inl.h"
#include "kernels/linear.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LinearKernel<T> kLinear{kTileRows, &LinearScratchBytes<T>, &LinearRun<T>, &LinearPackedBytes<T>,
                                  &LinearPack<T>};

const LinearKernel<Float16>* LinearF16() { return &kLinear<Float16>; }
const LinearKernel<BFloat16>* LinearBF16() { return &kLinear<BFloat16>; }
const LinearKernel<float>* LinearF32() { return &kLinear<float>; }
const LinearKernel<double>* LinearF64() { return &kLinear<double>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearF16);
HWY_EXPORT(LinearBF16);
HWY_EXPORT(LinearF32);
HWY_EXPORT(LinearF64);

template <>
const LinearKernel<Float16>& GetLinearKernel() {
  if (AmxChosen()) return *AmxLinearKernel<Float16>();
  return *HEADWISE_DISPATCH(LinearF16)();
}
template <>
const LinearKernel<BFloat16>& GetLinearKernel() {
  if (AmxChosen()) return *AmxLinearKernel<BFloat16>();
  return *HEADWISE_DISPATCH(LinearBF16)();
}
template <>
const LinearKernel<float>& GetLinearKernel() {
  if (AmxChosen()) return *AmxLinearKernel<float>();
  return *HEADWISE_DISPATCH(LinearF32)();
}
template <>
const LinearKernel<double>& GetLinearKernel() {
  return *HEADWISE_DISPATCH(LinearF64)();
}

}  // namespace headwise
#endif
