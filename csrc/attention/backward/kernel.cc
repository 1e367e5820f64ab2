// The backward pass of attention, compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backward/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "attention/backward/kernel-inl.h"
#include "attention/backward/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AttentionBackwardKernel<T> kBackward{&BackwardScratchBytes<T>, &QueryGradientSize<T>, &RunBackward<T>,
                                               &FinishQueryGradients<T>};

const KernelSet<AttentionBackwardKernel>* AttentionBackwardKernels() {
  static constexpr KernelSet<AttentionBackwardKernel> kernels{kBackward<Float16>, kBackward<BFloat16>, kBackward<float>,
                                                              kBackward<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AttentionBackwardKernels);

const KernelSet<AttentionBackwardKernel>& ChosenAttentionBackwardKernels() {
  return *HEADWISE_DISPATCH(AttentionBackwardKernels)();
}

}  // namespace headwise
#endif
