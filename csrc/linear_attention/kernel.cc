// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear_attention/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "linear_attention/kernel-inl.h"
#include "linear_attention/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LinearAttentionKernel<T> kLinearAttention{&LinearAttentionScratchBytes<T>, &RunLinearAttention<T>};

const KernelSet<LinearAttentionKernel>* LinearAttentionKernels() {
  static constexpr KernelSet<LinearAttentionKernel> kernels{kLinearAttention<Float16>, kLinearAttention<BFloat16>,
                                                            kLinearAttention<float>, kLinearAttention<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearAttentionKernels);

const KernelSet<LinearAttentionKernel>& ChosenLinearAttentionKernels() {
  return *HEADWISE_DISPATCH(LinearAttentionKernels)();
}

}  // namespace headwise
#endif
