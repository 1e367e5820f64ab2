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

constexpr RopeKernel<float> kRopeF32{&RotateHalves<float>, &RotateNeighbours<float>, &CopyPastCaches<float>};
constexpr RopeKernel<double> kRopeF64{&RotateHalves<double>, &RotateNeighbours<double>, &CopyPastCaches<double>};

const RopeKernel<float>* RopeF32() { return &kRopeF32; }
const RopeKernel<double>* RopeF64() { return &kRopeF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(RopeF32);
HWY_EXPORT(RopeF64);

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
