// The matmul backend BF16 dot (AVX512_BF16), compiled for AVX-512 alone: attention of bfloat16, and of float32 at
// precision "medium".
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/backends/dot.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "attention/backends/bf16-inl.h"
#include "attention/backends/interleaved_softmax-inl.h"
#include "attention/kernel-inl.h"
#include "attention/kernel.h"
#include "matmul/bf16_dot-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S>
using DotProducts = SplitProducts<S, 1, DotBackend>;

// A tile's weights, split to one term as they are computed.
template <typename S>
void DotWeights(const AttentionRun<DotProducts<S>>& run, const Stage<kSide>& stage, int64_t begin, int64_t end,
                TileWeights<1, DotProducts<S>::kStride>& weights) {
  const auto& [tile, keys, buffer] = stage;
  const int64_t first = keys.from / kChunk;
  weights.Start(run.Scores(stage) + first * kChunk, run.products.Weights(0, buffer), run.Shift(stage), tile->height,
                Chunks(keys.to) - first, 0, WeightsStay(run.args) || run.args.spec.dropout_keep);
  weights.Finish();
  weights.AddSums(run.Sum(stage));
  for (int r = 0; r < tile->rows; ++r) {
    if (WeightsStay(run.args)) StoreWeights(run, stage, r, begin, end);
    if (run.args.spec.dropout_keep) PrepareWeights(run, stage, r, begin);
  }
}

// One tile of rows after the other.
template <typename S>
void DotKeyBlock(const AttentionRun<DotProducts<S>>& run, int64_t begin, int64_t end,
                 TileWeights<1, DotProducts<S>::kStride>& weights) {
  for (int64_t t = 0; const auto stage = NextTile(run, t, begin, end);) {
    ComputeScores(run, stage, begin);
    FinishScores(run, stage, begin);
    UpdateTileMaxima(run, stage);
    if (run.products.ValuesSplit()) {
      DotWeights(run, stage, begin, end, weights);
    } else {
      for (int r = 0; r < stage.tile->rows; ++r) ComputeWeights(run, stage, r, begin, end);
    }
    AddValues(run, stage);
  }
}

template <typename S>
void DotAttentionBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  AttentionRun<DotProducts<S>> run(args, block, scratch);
  TileWeights<1, DotProducts<S>::kStride> weights;
  RunAttention(run, [&](int64_t begin, int64_t end) HWY_ATTR { DotKeyBlock(run, begin, end, weights); });
}

template <typename S>
constexpr AttentionKernel<S> kDotAttention{&AttentionScratchBytes<DotProducts<S>>, &DotAttentionBlock<S>};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace headwise {

template <typename T>
const AttentionKernel<T>* DotAttentionKernel() {
#if HEADWISE_BF16_KERNELS && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kDotAttention<T>;
#else
  return nullptr;
#endif
}

template const AttentionKernel<BFloat16>* DotAttentionKernel();
template const AttentionKernel<float>* DotAttentionKernel();

}  // namespace headwise
#endif
