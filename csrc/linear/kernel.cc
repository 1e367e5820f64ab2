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
constexpr LinearKernel<T> kLinear{kTileRows,     &FmaMaxGemvRows<T>,    &LinearScratchBytes<T>,
                                  &LinearRun<T>, &LinearPackedBytes<T>, &LinearPack<T>};

const KernelSet<LinearKernel>* LinearKernels() {
  static constexpr KernelSet<LinearKernel> kernels{kLinear<Float16>, kLinear<BFloat16>, kLinear<float>,
                                                   kLinear<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearKernels);

const KernelSet<LinearKernel>& ChosenLinearKernels() { return *HEADWISE_DISPATCH(LinearKernels)(); }

template <typename T>
const LinearKernel<T>& GetLinearKernel() {
  if constexpr (!std::is_same_v<T, double>) {
    const MatmulBackend backend = ChosenMatmulBackend();
    if (backend == MatmulBackend::kAmx) return *AmxLinearKernel<T>();
    if constexpr (!std::is_same_v<T, Float16>) {
      if (backend == MatmulBackend::kBf16Dot) return *DotLinearKernel<T>();
    }
  }
  return ChosenLinearKernels().Of<T>();
}
template const LinearKernel<Float16>& GetLinearKernel();
template const LinearKernel<BFloat16>& GetLinearKernel();
template const LinearKernel<float>& GetLinearKernel();
template const LinearKernel<double>& GetLinearKernel();

}  // namespace headwise
#endif
