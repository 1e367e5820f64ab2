// Compiled for AVX-512 alone, with products by AVX512_BF16. float64 has none.
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
  return &N_AVX3::kPartsLinear<N_AVX3::DotBackend, T>;
#else
  return nullptr;
#endif
}

template const LinearKernel<BFloat16>* DotLinearKernel();
template const LinearKernel<float>* DotLinearKernel();

}  // namespace headwise
#endif
