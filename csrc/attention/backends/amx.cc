// Compiled for AVX-512 alone, whose vectors do all but the products. float64 does not go by tiles.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backends/amx.cc"
#include <algorithm>
#include <type_traits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep

// Below foreach_target.h, or the first target would miss them.
#include "attention/backends/amx-inl.h"
#include "attention/kernel.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Parts that numbers are split into; halves are exact in one or two.
template <typename S>
constexpr int kMaxTerms = std::is_same_v<S, float>     ? 3
                          : std::is_same_v<S, Float16> ? 2
                                                       : 1;

template <typename S>
void AmxBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  switch (args.spec.precision) {
    case Precision::kHighest:
      return AmxAttentionBlock<S, kMaxTerms<S>>(args, block, scratch);
    case Precision::kHigh:
      return AmxAttentionBlock<S, std::min(2, kMaxTerms<S>)>(args, block, scratch);
    case Precision::kMedium:
      return AmxAttentionBlock<S, 1>(args, block, scratch);
  }
}

template <typename S>
constexpr AttentionKernel<S> kAmxAttention{&AttentionScratchBytes<AmxProducts<S, kMaxTerms<S>>>, &AmxBlock<S>};

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
