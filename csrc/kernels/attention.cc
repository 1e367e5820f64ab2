// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/attention-inl.h"
#include "kernels/attention.h"
#include "kernels/attention_fma-inl.h"
#include "kernels/decode-inl.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AttentionKernel<T> kAttention{&AttentionScratchBytes<FmaProducts<T>>,
                                        &AttentionRunBlock<FmaProducts<T>>,
                                        &PartialBytes<T>,
                                        &DecodeScratchBytes<T>,
                                        &DecodeRunChunk<T>,
                                        &MergeChunks<T>};

const AttentionKernel<float>* AttentionF32() { return &kAttention<float>; }
const AttentionKernel<double>* AttentionF64() { return &kAttention<double>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(AttentionF32);
HWY_EXPORT(AttentionF64);

template <>
const AttentionKernel<float>& GetAttentionKernel() {
  if (AmxChosen()) return *AmxAttentionKernel();
  return *HEADWISE_DISPATCH(AttentionF32)();
}
template <>
const AttentionKernel<double>& GetAttentionKernel() {
  return *HEADWISE_DISPATCH(AttentionF64)();
}

}  // namespace headwise
#endif
