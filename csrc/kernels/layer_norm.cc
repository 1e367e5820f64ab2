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

constexpr LayerNormKernel<Float16> kLayerNormF16{&LayerNormRow<Float16>};
constexpr LayerNormKernel<BFloat16> kLayerNormBF16{&LayerNormRow<BFloat16>};
constexpr LayerNormKernel<float> kLayerNormF32{&LayerNormRow<float>};
constexpr LayerNormKernel<double> kLayerNormF64{&LayerNormRow<double>};

const LayerNormKernel<Float16>* LayerNormF16() { return &kLayerNormF16; }
const LayerNormKernel<BFloat16>* LayerNormBF16() { return &kLayerNormBF16; }
const LayerNormKernel<float>* LayerNormF32() { return &kLayerNormF32; }
const LayerNormKernel<double>* LayerNormF64() { return &kLayerNormF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LayerNormF16);
HWY_EXPORT(LayerNormBF16);
HWY_EXPORT(LayerNormF32);
HWY_EXPORT(LayerNormF64);

template <>
const LayerNormKernel<Float16>& GetLayerNormKernel() {
  return *HEADWISE_DISPATCH(LayerNormF16)();
}
template <>
const LayerNormKernel<BFloat16>& GetLayerNormKernel() {
  return *HEADWISE_DISPATCH(LayerNormBF16)();
}
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
