// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "linear/gemv-inl.h"
#include "linear/kernel-inl.h"
#include "linear/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename X, typename W = X>
constexpr LinearKernel<X, W> kLinear{
    kTileRows,        &FmaMaxGemvRows<X, W>, &LinearScratchBytes<X, W>,
    &LinearRun<X, W>, kGemv<X, W>,           {&LinearPackedBytes<W>, &LinearPack<W>, &FmaPanels, WidenOf<W>()}};

const LinearKernelSet* LinearKernels() {
  static constexpr LinearKernelSet kernels{kLinear<Float16>, kLinear<BFloat16>,       kLinear<float>,
                                           kLinear<double>,  kLinear<float, Float16>, kLinear<float, BFloat16>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(LinearKernels);

const LinearKernelSet& ChosenLinearKernels() { return *HEADWISE_DISPATCH(LinearKernels)(); }

template <typename X, typename W>
const LinearKernel<X, W>& GetLinearKernel() {
  if constexpr (std::is_same_v<X, W> && !std::is_same_v<X, double>) {
    const MatmulBackend backend = ChosenMatmulBackend();
    if (backend == MatmulBackend::kAmx) return *AmxLinearKernel<X>();
    if constexpr (!std::is_same_v<X, Float16>) {
      if (backend == MatmulBackend::kBf16Dot) return *DotLinearKernel<X>();
    }
  }
  return ChosenLinearKernels().Of<X, W>();
}
template const LinearKernel<Float16>& GetLinearKernel();
template const LinearKernel<BFloat16>& GetLinearKernel();
template const LinearKernel<float>& GetLinearKernel();
template const LinearKernel<double>& GetLinearKernel();
template const LinearKernel<float, Float16>& GetLinearKernel();
template const LinearKernel<float, BFloat16>& GetLinearKernel();

}  // namespace headwise
#endif
