// Attention with multiply-adds in the accumulator type, compiled once per target: foreach_target.h includes this file
// again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backends/fma.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "attention/backends/fma-inl.h"
#include "attention/kernel-inl.h"
#include "attention/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AttentionKernel<T> kAttention{&AttentionScratchBytes<FmaProducts<T>>, &FmaAttentionBlock<T>};

const KernelSet<AttentionKernel>* AttentionKernels() {
  static constexpr KernelSet<AttentionKernel> kernels{kAttention<Float16>, kAttention<BFloat16>, kAttention<float>,
                                                      kAttention<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AttentionKernels);

const KernelSet<AttentionKernel>& ChosenAttentionKernels() { return *HEADWISE_DISPATCH(AttentionKernels)(); }

}  // namespace headwise
#endif
