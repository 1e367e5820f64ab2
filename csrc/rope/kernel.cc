// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rope/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "rope/kernel-inl.h"
#include "rope/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr RopeKernel<T> kRope{&RotateHalves<T>, &RotateNeighbours<T>, &CopyNonTemporal<T>};

const KernelSet<RopeKernel>* RopeKernels() {
  static constexpr KernelSet<RopeKernel> kernels{kRope<Float16>, kRope<BFloat16>, kRope<float>, kRope<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(RopeKernels);

const KernelSet<RopeKernel>& ChosenRopeKernels() { return *HEADWISE_DISPATCH(RopeKernels)(); }

}  // namespace headwise
#endif
