// Decode, compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/decode/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "attention/decode/combine-inl.h"
#include "attention/decode/kernel-inl.h"
#include "attention/decode/small-inl.h"
#include "attention/kernel.h"
#include "base/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Old processors and the portable code do without small-inl.h, whose instantiations are large.
constexpr bool kHasSmallHeads = HWY_TARGET != HWY_SSE4 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128;

template <typename T>
constexpr DecodeKernel<T> MakeDecodeKernel() {
  DecodeKernel<T> kernel{&PartialBytes<T>, &DecodeScratchBytes<T>, &DecodeChunkKernel<T>, &CombineChunks<T>, nullptr};
  if constexpr (kHasSmallHeads) kernel.small_heads = &RunSmallHeads<T>;
  return kernel;
}
template <typename T>
constexpr DecodeKernel<T> kDecode = MakeDecodeKernel<T>();

const KernelSet<DecodeKernel>* DecodeKernels() {
  static constexpr KernelSet<DecodeKernel> kernels{kDecode<Float16>, kDecode<BFloat16>, kDecode<float>,
                                                   kDecode<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(DecodeKernels);

const KernelSet<DecodeKernel>& ChosenDecodeKernels() { return *HEADWISE_DISPATCH(DecodeKernels)(); }

}  // namespace headwise
#endif
