// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/rope-inl.h"
#include "kernels/rope.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

constexpr RopeKernel<Float16> kRopeF16{&RotateHalves<Float16>, &RotateNeighbours<Float16>, &CopyPastCaches<Float16>};
constexpr RopeKernel<BFloat16> kRopeBF16{&RotateHalves<BFloat16>, &RotateNeighbours<BFloat16>,
                                         &CopyPastCaches<BFloat16>};
constexpr RopeKernel<float> kRopeF32{&RotateHalves<float>, &RotateNeighbours<float>, &CopyPastCaches<float>};
constexpr RopeKernel<double> kRopeF64{&RotateHalves<double>, &RotateNeighbours<double>, &CopyPastCaches<double>};

const RopeKernel<Float16>* RopeF16() { return &kRopeF16; }
const RopeKernel<BFloat16>* RopeBF16() { return &kRopeBF16; }
const RopeKernel<float>* RopeF32() { return &kRopeF32; }
const RopeKernel<double>* RopeF64() { return &kRopeF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(RopeF16);
HWY_EXPORT(RopeBF16);
HWY_EXPORT(RopeF32);
HWY_EXPORT(RopeF64);

template <>
const RopeKernel<Float16>& GetRopeKernel() {
  return *HEADWISE_DISPATCH(RopeF16)();
}
template <>
const RopeKernel<BFloat16>& GetRopeKernel() {
  return *HEADWISE_DISPATCH(RopeBF16)();
}
template <>
const RopeKernel<float>& GetRopeKernel() {
  return *HEADWISE_DISPATCH(RopeF32)();
}
template <>
const RopeKernel<double>& GetRopeKernel() {
  return *HEADWISE_DISPATCH(RopeF64)();
}

}  // namespace headwise
#endif
