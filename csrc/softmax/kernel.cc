// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "softmax/kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "softmax/kernel-inl.h"
#include "softmax/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Rows up to this length stay in L2, where keeping exponentials is faster than recomputing them.
constexpr std::int64_t kLongestSoftmaxRow = 1 << 16;

template <typename T>
constexpr SoftmaxKernel<T> kSoftmax{
    &PartOfRow<T>,
    {&SoftmaxOfRows<T>, kLongestSoftmaxRow, &Finish<T, WriteSoftmax<T>>, &SoftmaxColumns<T>},
    {&InOnePart<T, WriteLogSoftmax<T>>, kPart, &Finish<T, WriteLogSoftmax<T>>, &LogSoftmaxColumns<T>},
    {&InOnePart<T, WriteLogSumExp<T>>, kPart, &Finish<T, WriteLogSumExp<T>>, &LogSumExpColumns<T>},
};

const KernelSet<SoftmaxKernel>* SoftmaxKernels() {
  static constexpr KernelSet<SoftmaxKernel> kernels{kSoftmax<Float16>, kSoftmax<BFloat16>, kSoftmax<float>,
                                                    kSoftmax<double>};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

HWY_EXPORT(SoftmaxKernels);

const KernelSet<SoftmaxKernel>& ChosenSoftmaxKernels() { return *HEADWISE_DISPATCH(SoftmaxKernels)(); }

}  // namespace headwise
#endif
