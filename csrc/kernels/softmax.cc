// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/softmax.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/softmax-inl.h"
#include "kernels/softmax.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// In a row that stays in the second-level cache an exponential is better kept than computed again.
constexpr std::int64_t kLongestSoftmaxRow = 1 << 16;

template <typename T>
constexpr SoftmaxKernel<T> kSoftmax{
    &PartOfRow<T>,
    {&SoftmaxOfRows<T>, kLongestSoftmaxRow, &Finish<T, WriteSoftmax<T>>, &SoftmaxColumns<T>},
    {&InOnePart<T, WriteLogSoftmax<T>>, kPart, &Finish<T, WriteLogSoftmax<T>>, &LogSoftmaxColumns<T>},
    {&InOnePart<T, WriteLogSumExp<T>>, kPart, &Finish<T, WriteLogSumExp<T>>, &LogSumExpColumns<T>},
};

const SoftmaxKernel<Float16>* SoftmaxF16() { return &kSoftmax<Float16>; }
const SoftmaxKernel<BFloat16>* SoftmaxBF16() { return &kSoftmax<BFloat16>; }
const SoftmaxKernel<float>* SoftmaxF32() { return &kSoftmax<float>; }
const SoftmaxKernel<double>* SoftmaxF64() { return &kSoftmax<double>; }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(SoftmaxF16);
HWY_EXPORT(SoftmaxBF16);
HWY_EXPORT(SoftmaxF32);
HWY_EXPORT(SoftmaxF64);

template <>
const SoftmaxKernel<Float16>& GetSoftmaxKernel() {
  return *HEADWISE_DISPATCH(SoftmaxF16)();
}
template <>
const SoftmaxKernel<BFloat16>& GetSoftmaxKernel() {
  return *HEADWISE_DISPATCH(SoftmaxBF16)();
}
template <>
const SoftmaxKernel<float>& GetSoftmaxKernel() {
  return *HEADWISE_DISPATCH(SoftmaxF32)();
}
template <>
const SoftmaxKernel<double>& GetSoftmaxKernel() {
  return *HEADWISE_DISPATCH(SoftmaxF64)();
}

}  // namespace headwise
#endif
