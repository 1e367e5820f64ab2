// The matmul backend AMX tiles: the tile unit and the vector unit work on three tiles of rows at once.
//
// While the tile unit multiplies the weights of one tile with the values, and then the queries of another with the
// keys, the vector unit computes the weights of the tile between them and adds the first one's product to its outputs
// (interleaved_softmax-inl.h): about ten vector operations after each tile instruction. The interleaving is this fine
// because a core's out-of-order window is short: where two threads share a core, tens of vector operations in a row, or
// tile loads in a row, already make the units take turns.
//
// Cost per tile of 32 rows by 128 keys, at head_dim 64 and three terms: 384 tile products of 16 cycles, and 5,500
// vector operations at one per cycle, because tile products occupy one of the two vector ports.

#if defined(HEADWISE_ATTENTION_BACKENDS_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKENDS_AMX_INL_H_
#undef HEADWISE_ATTENTION_BACKENDS_AMX_INL_H_
#else
#define HEADWISE_ATTENTION_BACKENDS_AMX_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/backends/bf16-inl.h"
#include "attention/backends/interleaved_softmax-inl.h"
#include "attention/kernel-inl.h"
#include "hwy/highway.h"
#include "matmul/bf16_amx-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S, int kTerms>
using AmxProducts = SplitProducts<S, kTerms, AmxBackend>;

template <typename S, int kTerms>
using AmxWeights = TileWeights<kTerms, AmxProducts<S, kTerms>::kStride>;

// A running max stays while no score exceeds it by more than this, so that few tiles have to rescale their outputs.
// Weights are then up to e^5.5, which fits, as split values are below 2^110. With fewer than three terms weights are
// rounded, except a max weight of exactly 1, which is often most of its row: there the max is exact.
template <int kTerms>
constexpr float kMaxSlack = kTerms == 3 ? 5.5f : 0.0f;

// Requested weights, and weights that dropout will change, overwrite the scores.
template <typename S, int kTerms>
bool WeightsInPlace(const AttentionRun<AmxProducts<S, kTerms>>& run) {
  return WeightsStay(run.args) || run.args.spec.dropout_keep;
}

// Whether weights may be computed with the running maxima before the tile's own maxima are known. If a score turns out
// to exceed its max by too much, they are computed again, for which the scores must still be there.
template <typename S, int kTerms>
bool CanReuseMaxima(const AttentionRun<AmxProducts<S, kTerms>>& run, const Stage<kSide>& stage) {
  if (!AmxWeights<S, kTerms>::kTrackMax || stage.keys.modifiers != 0 || WeightsInPlace<S, kTerms>(run)) return false;
  const Tag<float> d;
  bool finite = true;
  for (int r = 0; r < kSide; r += kLanes<float>) {
    finite &= hn::AllTrue(d, hn::IsFinite(hn::Load(d, run.Max(stage) + r)));
  }
  return finite;
}

// Sets the tile's weights up to be computed alongside chunk_products chunk products.
template <typename S, int kTerms>
void StartWeights(const AttentionRun<AmxProducts<S, kTerms>>& run, const Stage<kSide>& stage, const float* shift,
                  int64_t chunk_products, AmxWeights<S, kTerms>& weights) {
  const auto& [tile, keys, buffer] = stage;
  const int64_t first = keys.from / kChunk;
  weights.Start(run.Scores(stage) + first * kChunk, run.products.Weights(0, buffer), shift, tile->height,
                Chunks(keys.to) - first, chunk_products, WeightsInPlace<S, kTerms>(run));
}

// Computes the tile's weights again, with its own maxima.
template <typename S, int kTerms>
void RecomputeWeights(const AttentionRun<AmxProducts<S, kTerms>>& run, const Stage<kSide>& stage,
                      AmxWeights<S, kTerms>& weights) {
  const auto& [tile, keys, buffer] = stage;
  run.products.MaxScores(*tile, keys.from, keys.to, run.Scores(stage), run.Shift(stage));
  UpdateTileMaxima(run, stage, kMaxSlack<kTerms>);
  StartWeights<S, kTerms>(run, stage, run.Shift(stage), 0, weights);
  weights.Finish();
}

// Multiplies a tile's weights with the values, alongside `weights` of another tile, and rescales its outputs. Returns
// the addition of the product to the outputs, which is left to do.
template <typename S, int kTerms>
OutputAdditions<kTerms> MultiplyValues(const AttentionRun<AmxProducts<S, kTerms>>& run, const Stage<kSide>& stage,
                                       AmxWeights<S, kTerms>& weights) {
  const auto& [tile, keys, buffer] = stage;
  float* const output = run.Output(stage);
  const float* const rescale = run.Rescale(stage);
  if (!run.products.ValuesSplit()) {
    run.products.AddValuesInFloat32(*tile, keys.from, keys.to, run.Scores(stage), rescale, output);
    return {};
  }
  run.products.MultiplyValues(*tile, keys.from, keys.to, buffer, weights);
  const int64_t width = run.scratch.value_width;
  for (int r = 0; r < tile->rows; ++r) {
    if (rescale[r] != 1.0f) ScaleRow(output + r * width, width, rescale[r], output + r * width);
  }
  return {output, run.products.Product(), tile->rows * width};
}

// A pipeline of three tiles: `ahead` is multiplied with the keys, `now` gets its weights, `behind` is multiplied with
// the values.
template <typename S, int kTerms>
void AmxKeyBlock(const AttentionRun<AmxProducts<S, kTerms>>& run, int64_t begin, int64_t end,
                 AmxWeights<S, kTerms>& weights) {
  const auto& products = run.products;
  const bool by_rows = !products.ValuesSplit();  // weights of values that do not split stay in float32
  Stage<kSide> behind, now, ahead;
  int64_t t = 0;
  for (int buffer = 0; (ahead = NextTile(run, t, begin, end, buffer)) || now || behind; buffer ^= 1) {
    const bool reuse_maxima = now && !by_rows && CanReuseMaxima<S, kTerms>(run, now);
    if (now) {
      if (reuse_maxima) {
        products.AdjustScores(*now.tile, now.keys.from, now.keys.to, begin, now.keys.fused, run.Scores(now));
        std::fill_n(run.Rescale(now), kSide, 1.0f);
      } else {
        FinishScores(run, now, begin);
        UpdateTileMaxima(run, now, by_rows ? 0.0f : kMaxSlack<kTerms>);
      }
      if (by_rows) {
        for (int r = 0; r < now.tile->rows; ++r) ComputeWeights(run, now, r, begin, end);
      } else {
        const int64_t chunk_products = products.ScoreChunks(ahead.keys.from, ahead.keys.to) +
                                       products.ValueChunks(behind.keys.from, behind.keys.to);
        StartWeights<S, kTerms>(run, now, reuse_maxima ? run.Max(now) : run.Shift(now), chunk_products, weights);
      }
    }
    // `behind` before `ahead`, which takes over its buffer.
    OutputAdditions<kTerms> additions;
    if (behind) additions = MultiplyValues<S, kTerms>(run, behind, weights);
    if (ahead) {
      ComputeScores(run, ahead, begin,
                    WeightsAndAdditions<kTerms, AmxProducts<S, kTerms>::kStride>{weights, additions});
    }
    additions.Finish();
    if (now && !by_rows) {
      weights.Finish();
      if (reuse_maxima && weights.Exceeds(kMaxSlack<kTerms>)) RecomputeWeights<S, kTerms>(run, now, weights);
      weights.AddSums(run.Sum(now));
      for (int r = 0; r < now.tile->rows; ++r) {
        if (WeightsStay(run.args)) StoreWeights(run, now, r, begin, end);
        if (run.args.spec.dropout_keep) PrepareWeights(run, now, r, begin);
      }
    }
    behind = now, now = ahead;
  }
}

template <typename S, int kTerms>
void AmxAttentionBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  const AmxBackend::Scope tiles;
  AttentionRun<AmxProducts<S, kTerms>> run(args, block, scratch);
  AmxWeights<S, kTerms> weights;
  RunAttention(run, [&](int64_t begin, int64_t end) HWY_ATTR { AmxKeyBlock<S, kTerms>(run, begin, end, weights); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
