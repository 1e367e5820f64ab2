// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "activation/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "activation/kernel-inl.h"
#include "activation/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr ActivationKernel<T> kActivation{&ActivationForward<T>, &ActivationBackward<T>};

const KernelSet<ActivationKernel>* ActivationKernels() {
  static constexpr KernelSet<ActivationKernel> kernels{kActivation<Float16>, kActivation<BFloat16>, kActivation<float>,
                                                       kActivation<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(ActivationKernels);

const KernelSet<ActivationKernel>& ChosenActivationKernels() { return *HEADWISE_DISPATCH(ActivationKernels)(); }

}  // namespace headwise
#endif
