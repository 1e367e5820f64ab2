// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/alibi.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/alibi-inl.h"
#include "kernels/alibi.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

constexpr AlibiKernel<Float16> kAlibiF16{&AddAlibiRow<Float16>};
constexpr AlibiKernel<BFloat16> kAlibiBF16{&AddAlibiRow<BFloat16>};
constexpr AlibiKernel<float> kAlibiF32{&AddAlibiRow<float>};
constexpr AlibiKernel<double> kAlibiF64{&AddAlibiRow<double>};

const AlibiKernel<Float16>* AlibiF16() { return &kAlibiF16; }
const AlibiKernel<BFloat16>* AlibiBF16() { return &kAlibiBF16; }
const AlibiKernel<float>* AlibiF32() { return &kAlibiF32; }
const AlibiKernel<double>* AlibiF64() { return &kAlibiF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AlibiF16);
HWY_EXPORT(AlibiBF16);
HWY_EXPORT(AlibiF32);
HWY_EXPORT(AlibiF64);

template <>
const AlibiKernel<Float16>& GetAlibiKernel() {
  return *HEADWISE_DISPATCH(AlibiF16)();
}
template <>
const AlibiKernel<BFloat16>& GetAlibiKernel() {
  return *HEADWISE_DISPATCH(AlibiBF16)();
}
template <>
const AlibiKernel<float>& GetAlibiKernel() {
  return *HEADWISE_DISPATCH(AlibiF32)();
}
template <>
const AlibiKernel<double>& GetAlibiKernel() {
  return *HEADWISE_DISPATCH(AlibiF64)();
}

}  // namespace headwise
#endif
