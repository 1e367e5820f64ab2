// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "alibi/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "alibi/kernel-inl.h"
#include "alibi/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AlibiKernel<T> kAlibi{&AddAlibiRow<T>};

HEADWISE_KERNELS(Alibi)

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HEADWISE_GET_KERNELS(Alibi)

}  // namespace headwise
#endif
