// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/decode.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/attention.h"
#include "kernels/decode-inl.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr DecodeKernel<T> kDecode{&PartialBytes<T>, &DecodeScratchBytes<T>, &DecodeRunChunk<T>, &MergeChunks<T>};

const DecodeKernel<float>* DecodeF32() { return &kDecode<float>; }
const DecodeKernel<double>* DecodeF64() { return &kDecode<double>; }
const DecodeKernel<Float16>* DecodeF16() { return &kDecode<Float16>; }
const DecodeKernel<BFloat16>* DecodeBF16() { return &kDecode<BFloat16>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(DecodeF32);
HWY_EXPORT(DecodeF64);
HWY_EXPORT(DecodeF16);
HWY_EXPORT(DecodeBF16);

template <>
const DecodeKernel<float>& GetDecodeKernel() {
  return *HEADWISE_DISPATCH(DecodeF32)();
}
template <>
const DecodeKernel<double>& GetDecodeKernel() {
  return *HEADWISE_DISPATCH(DecodeF64)();
}
template <>
const DecodeKernel<Float16>& GetDecodeKernel() {
  return *HEADWISE_DISPATCH(DecodeF16)();
}
template <>
const DecodeKernel<BFloat16>& GetDecodeKernel() {
  return *HEADWISE_DISPATCH(DecodeBF16)();
}

}  // namespace headwise
#endif
