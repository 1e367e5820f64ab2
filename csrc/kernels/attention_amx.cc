// Compiled for AVX-512 alone, whose vectors do all but the products. Only float32 goes by tiles.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_amx.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/amx.h"
#include "kernels/attention.h"
#include "kernels/attention_amx-inl.h"
#include "kernels/attention_amx_run-inl.h"
#include "kernels/decode-inl.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

void AmxBlock(const AttentionArgs<float>& args, const AttentionBlock& block, std::byte* scratch) {
  switch (args.precision) {
    case Precision::kHighest:
      return AmxAttentionBlock<3>(args, block, scratch);
    case Precision::kHigh:
      return AmxAttentionBlock<2>(args, block, scratch);
    case Precision::kMedium:
      return AmxAttentionBlock<1>(args, block, scratch);
  }
}

// Queries too few for tiles go by float32, as everywhere.
constexpr AttentionKernel<float> kAmxAttention{&AttentionScratchBytes<AmxProducts<3>>,
                                               &AmxBlock,
                                               &PartialBytes<float>,
                                               &DecodeScratchBytes<float>,
                                               &DecodeRunChunk<float>,
                                               &MergeChunks<float>};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace headwise {

const AttentionKernel<float>* AmxAttentionKernel() {
#if HEADWISE_AMX && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kAmxAttention;
#else
  return nullptr;
#endif
}

}  // namespace headwise
#endif
