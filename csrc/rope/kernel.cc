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
constexpr RopeKernel<T> kRope{&RotateHalves<T>, &RotateNeighbours<T>, &CopyPastCaches<T>};

HEADWISE_KERNELS(Rope)

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HEADWISE_GET_KERNELS(Rope)

}  // namespace headwise
#endif
