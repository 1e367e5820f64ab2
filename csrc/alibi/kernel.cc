// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "alibi/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "alibi/kernel-inl.h"
#include "alibi/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AlibiKernel<T> kAlibi{&AddAlibiRow<T>};

const KernelSet<AlibiKernel>* AlibiKernels() {
  static constexpr KernelSet<AlibiKernel> kernels{kAlibi<Float16>, kAlibi<BFloat16>, kAlibi<float>, kAlibi<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AlibiKernels);

const KernelSet<AlibiKernel>& ChosenAlibiKernels() { return *HEADWISE_DISPATCH(AlibiKernels)(); }

}  // namespace headwise
#endif
