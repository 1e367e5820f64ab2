// The linear map on AVX512_BF16, compiled for AVX-512 only, for bfloat16 and for float32 at kMedium.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/kernel_dot.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "linear/bf16-inl.h"
#include "linear/kernel.h"
#include "matmul/bf16_dot-inl.h"

#if HWY_ONCE
namespace headwise {

template <typename T>
const LinearKernel<T>* DotLinearKernel() {
#if HEADWISE_BF16_KERNELS && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kBf16Linear<N_AVX3::DotBackend, T>;
#else
  return nullptr;
#endif
}

template const LinearKernel<BFloat16>* DotLinearKernel();
template const LinearKernel<float>* DotLinearKernel();

}  // namespace headwise
#endif
