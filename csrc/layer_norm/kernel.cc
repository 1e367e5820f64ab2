// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layer_norm/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "layer_norm/kernel-inl.h"
#include "layer_norm/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LayerNormKernel<T> kLayerNorm{&NormRow<true, T>, &NormRow<false, T>, &NormRowBackward<true, T>,
                                        &NormRowBackward<false, T>};

const KernelSet<LayerNormKernel>* LayerNormKernels() {
  static constexpr KernelSet<LayerNormKernel> kernels{kLayerNorm<Float16>, kLayerNorm<BFloat16>, kLayerNorm<float>,
                                                      kLayerNorm<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LayerNormKernels);

const KernelSet<LayerNormKernel>& ChosenLayerNormKernels() { return *HEADWISE_DISPATCH(LayerNormKernels)(); }

}  // namespace headwise
#endif
