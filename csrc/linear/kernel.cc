// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "linear/kernel-inl.h"
#include "linear/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr LinearKernel<T> kLinear{kTileRows,     &LinearFewRows<T>,     &LinearScratchBytes<T>,
                                  &LinearRun<T>, &LinearPackedBytes<T>, &LinearPack<T>};

HEADWISE_KERNELS(Linear)

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HEADWISE_EXPORT_KERNELS(Linear)

template <typename T>
const LinearKernel<T>& GetLinearKernel() {
  if constexpr (!std::is_same_v<T, double>) {
    const BFloat16Unit unit = ChosenUnit();
    if (unit == BFloat16Unit::kAmx) return *AmxLinearKernel<T>();
    if constexpr (!std::is_same_v<T, Float16>) {
      if (unit == BFloat16Unit::kDot) return *DotLinearKernel<T>();
    }
  }
  return ChosenLinearKernel<T>();
}
template const LinearKernel<Float16>& GetLinearKernel();
template const LinearKernel<BFloat16>& GetLinearKernel();
template const LinearKernel<float>& GetLinearKernel();
template const LinearKernel<double>& GetLinearKernel();

}  // namespace headwise
#endif
