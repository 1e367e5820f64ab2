// The linear map on AMX, compiled for AVX-512 only: its vectors pack and sum. float64 stays on FMA.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/kernel_amx.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "linear/bf16-inl.h"
#include "linear/kernel.h"
#include "matmul/bf16_amx-inl.h"

#if HWY_ONCE
namespace headwise {

template <typename T>
const LinearKernel<T>* AmxLinearKernel() {
#if HEADWISE_BF16_KERNELS && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kBf16Linear<N_AVX3::AmxBackend, T>;
#else
  return nullptr;
#endif
}

template const LinearKernel<Float16>* AmxLinearKernel();
template const LinearKernel<BFloat16>* AmxLinearKernel();
template const LinearKernel<float>* AmxLinearKernel();

}  // namespace headwise
#endif
