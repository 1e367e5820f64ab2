// The matmul backend AMX tiles, compiled for AVX-512 alone, which does all but the products. Every type but float64.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backends/amx.cc"
#include <algorithm>
#include <type_traits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep

// Below foreach_target.h, or the first target would miss them.
#include "attention/backends/amx-inl.h"
#include "attention/kernel.h"
#include "matmul/bf16_policy.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S>
void AmxBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  constexpr int kMax = kMaxAttentionTerms<S>;
  switch (AttentionTerms<S>(MatmulBackend::kAmx, args.spec.precision)) {
    case 3:
      return AmxAttentionBlock<S, kMax>(args, block, scratch);
    case 2:
      return AmxAttentionBlock<S, std::min(2, kMax)>(args, block, scratch);
    default:
      return AmxAttentionBlock<S, 1>(args, block, scratch);
  }
}

template <typename S>
constexpr AttentionKernel<S> kAmxAttention{&AttentionScratchBytes<AmxProducts<S, kMaxAttentionTerms<S>>>, &AmxBlock<S>};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace headwise {

template <typename T>
const AttentionKernel<T>* AmxAttentionKernel() {
#if HEADWISE_BF16_KERNELS && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kAmxAttention<T>;
#else
  return nullptr;
#endif
}

template const AttentionKernel<Float16>* AmxAttentionKernel();
template const AttentionKernel<BFloat16>* AmxAttentionKernel();
template const AttentionKernel<float>* AmxAttentionKernel();

}  // namespace headwise
#endif
