// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/gemv.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "linear/gemv-inl.h"
#include "linear/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr GemvKernel<T> kGemv{&GemvScratchBytes<T>, &Gemv<T>};

const KernelSet<GemvKernel>* GemvKernels() {
  static constexpr KernelSet<GemvKernel> kernels{kGemv<Float16>, kGemv<BFloat16>, kGemv<float>, kGemv<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(GemvKernels);

const KernelSet<GemvKernel>& ChosenGemvKernels() { return *HEADWISE_DISPATCH(GemvKernels)(); }

}  // namespace headwise
#endif
