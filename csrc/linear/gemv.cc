// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/gemv.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "linear/gemv-inl.h"
#include "linear/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LinearFewKernel<T> kLinearFew{&LinearFewRowsScratchBytes<T>, &LinearFewRows<T>};

const KernelSet<LinearFewKernel>* LinearFewKernels() {
  static constexpr KernelSet<LinearFewKernel> kernels{kLinearFew<Float16>, kLinearFew<BFloat16>, kLinearFew<float>,
                                                      kLinearFew<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearFewKernels);

const KernelSet<LinearFewKernel>& ChosenLinearFewKernels() { return *HEADWISE_DISPATCH(LinearFewKernels)(); }

}  // namespace headwise
#endif
