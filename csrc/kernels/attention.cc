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
const AttentionKernel<Float16>* AttentionF16() { return &kAttention<Float16>; }
const AttentionKernel<BFloat16>* AttentionBF16() { return &kAttention<BFloat16>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

// Whether tiles are faster than multiply-adds. Of shapes alone, so that a call's bits are always the same.
template <typename T>
bool WorthTiles(const AttentionArgs<T>& /*args*/) {
  return true;
}

HWY_EXPORT(AttentionF32);
HWY_EXPORT(AttentionF64);
HWY_EXPORT(AttentionF16);
HWY_EXPORT(AttentionBF16);

template <>
const AttentionKernel<float>& GetAttentionKernel(const AttentionArgs<float>& args) {
  if (AmxChosen() && WorthTiles(args)) return *AmxAttentionKernel<float>();
  return *HEADWISE_DISPATCH(AttentionF32)();
}
template <>
const AttentionKernel<double>& GetAttentionKernel(const AttentionArgs<double>&) {
  return *HEADWISE_DISPATCH(AttentionF64)();
}
template <>
const AttentionKernel<Float16>& GetAttentionKernel(const AttentionArgs<Float16>& args) {
  if (AmxChosen() && WorthTiles(args)) return *AmxAttentionKernel<Float16>();
  return *HEADWISE_DISPATCH(AttentionF16)();
}
template <>
const AttentionKernel<BFloat16>& GetAttentionKernel(const AttentionArgs<BFloat16>& args) {
  if (AmxChosen() && WorthTiles(args)) return *AmxAttentionKernel<BFloat16>();
  return *HEADWISE_DISPATCH(AttentionBF16)();
}

}  // namespace headwise
#endif
