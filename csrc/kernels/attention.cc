// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/attention-inl.h"
#include "kernels/attention.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

constexpr AttentionKernel<float> kAttentionF32{&AttentionScratchBytes<float>, &AttentionRunBlock<float>};
constexpr AttentionKernel<double> kAttentionF64{&AttentionScratchBytes<double>, &AttentionRunBlock<double>};

const AttentionKernel<float>* AttentionF32() { return &kAttentionF32; }
const AttentionKernel<double>* AttentionF64() { return &kAttentionF64; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AttentionF32);
HWY_EXPORT(AttentionF64);

template <>
const AttentionKernel<float>& GetAttentionKernel() {
  return *HEADWISE_DISPATCH(AttentionF32)();
}
template <>
const AttentionKernel<double>& GetAttentionKernel() {
  return *HEADWISE_DISPATCH(AttentionF64)();
}

}  // namespace headwise
#endif
