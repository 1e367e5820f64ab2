// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/layer_norm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/layer_norm-inl.h"
#include "kernels/layer_norm.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

constexpr LayerNormKernel<float> kLayerNormF32{&LayerNormRow<float>};
constexpr LayerNormKernel<double> kLayerNormF64{&LayerNormRow<double>};

const LayerNormKernel<float>* LayerNormF32() { return &kLayerNormF32; }
const LayerNormKernel<double>* LayerNormF64() { return &kLayerNormF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LayerNormF32);
HWY_EXPORT(LayerNormF64);

template <>
const LayerNormKernel<float>& GetLayerNormKernel() {
  return *HEADWISE_DISPATCH(LayerNormF32)();
}
template <>
const LayerNormKernel<double>& GetLayerNormKernel() {
  return *HEADWISE_DISPATCH(LayerNormF64)();
}

}  // namespace headwise
#endif
