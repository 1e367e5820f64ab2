// Attention on tiles: the tile unit and the vector unit at work on three tiles of rows at once.
//
// While the tile unit multiplies the weights of one tile with the values and then the queries of another with the keys,
// the vector unit makes weights of the scores of the one between them, and adds the first one's product to its outputs
// (attention_amx_work-inl.h): about ten operations after each instruction on tiles. So finely since a processor looks
// ahead only so far; where a core is shared by two threads, tens of operations in a row, or loads of tiles in a row,
// already make the units take turns.
//
// Per tile of 32 rows by 128 keys, at 64 features and three parts: 384 products of 16 cycles, and 5,500 vector
// operations, one per cycle while tiles are multiplied, for these take one of two ports.

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

template <typename S, int kParts>
using AmxProducts = PartsProducts<S, kParts, AmxBackend>;

template <typename S, int kParts>
class AmxAttentionRun final : public AttentionRun<AmxProducts<S, kParts>> {
  using Products = AmxProducts<S, kParts>;
  using Base = AttentionRun<Products>;
  using typename Base::Part;
  using typename Base::Stage;

 public:
  using Base::Base;

 private:
  using Weights = TileWeights<kParts, Products::kStride>;
  using Outputs = AmxOutputs<kParts>;
  using WeightsAndOutputs = AmxWeightsAndOutputs<kParts, Products::kStride>;

  // A maximum stays while no score is greater by more than this, so that few tiles' outputs have to follow a new one.
  // Weights are up to e^5.5 then, values below 2^110. Weights in fewer than three parts are rounded, but for the
  // greatest if it is 1, which often is most of its row: there a maximum is what it says.
  static constexpr float kSlack = Weights::kWatch ? 5.5f : 0.0f;

  void Online(int64_t begin, int64_t end) override {
    // Weights that go to values that do not split are made by rows.
    const bool by_rows = !products_.ValuesSplit();
    Stage behind, now, ahead;
    int64_t t = 0;
    for (int buffer = 0; (ahead = this->Next(t, begin, end, buffer)) || now || behind; buffer ^= 1) {
      const bool as_before = now && !by_rows && MaximaMayStay(now);
      if (now) {
        if (as_before) {
          AdjustScores(now, begin);
          std::fill_n(this->Rescale(now), Products::kRows, 1.0f);
        } else {
          this->FinishScores(now, begin);
          this->MoveMaxima(now, by_rows ? 0.0f : kSlack);
        }
        if (by_rows) {
          for (int r = 0; r < now.tile->rows; ++r) this->WeightsOfRow(now, r, begin, end);
        } else {
          StartWeights(now, as_before ? Maxima(now) : this->Shift(now), ChunkProducts(ahead, behind));
        }
      }
      // The tile behind first: the one ahead takes over its buffer.
      Outputs outputs = behind ? MultiplyValues(behind) : Outputs();
      if (ahead) this->Score(ahead, begin, WeightsAndOutputs{weights_, outputs});
      outputs.Finish();
      if (now && !by_rows) {
        weights_.Finish();
        if (as_before && weights_.Exceeds(kSlack)) MakeAgain(now);
        weights_.AddSums(this->scratch_.sum + now.tile->first_row);
        for (int r = 0; r < now.tile->rows; ++r) {
          if (this->args_.weights) this->StoreWeights(now, r, begin, end);
          if (this->args_.spec.dropout_keep) this->TakeWeights(now, r, begin);
        }
      }
      behind = now, now = ahead;
    }
  }

  float* Maxima(const Stage& stage) const { return this->scratch_.max + stage.tile->first_row; }

  // Whether weights may be taken with the maxima so far, before anyone has looked for greater scores. If there are any,
  // they are taken again, for which the scores have to be there still.
  bool MaximaMayStay(const Stage& stage) const {
    if (!Weights::kWatch || stage.part.changes || InPlace()) return false;
    const Tag<float> d;
    const float* max = Maxima(stage);
    bool finite = true;
    for (int r = 0; r < Products::kRows; r += kLanes<float>) {
      finite &= hn::AllTrue(d, hn::IsFinite(hn::Load(d, max + r)));
    }
    return finite;
  }

  void MakeAgain(const Stage& stage) {
    const auto& [tile, part, buffer] = stage;
    products_.GreatestScores(*tile, part.from, part.to, this->Scores(stage), this->Shift(stage));
    this->MoveMaxima(stage, kSlack);
    StartWeights(stage, this->Shift(stage), 0);
    weights_.Finish();
  }

  // Weights that are wanted, or that dropout changes, take the place of the scores.
  bool InPlace() const { return this->args_.weights || this->args_.spec.dropout_keep; }

  void AdjustScores(const Stage& stage, int64_t begin) const {
    const auto& [tile, part, buffer] = stage;
    products_.AdjustScores(*tile, part.from, part.to, begin, part.alibi, this->Scores(stage));
  }

  void StartWeights(const Stage& stage, const float* shift, int64_t chunk_products) {
    const auto& [tile, part, buffer] = stage;
    const int64_t first = part.from / kChunk;
    weights_.Start(this->Scores(stage) + first * kChunk, products_.Weights(0, buffer), shift, tile->height,
                   Chunks(part.to) - first, chunk_products, InPlace());
  }

  // What the outputs still lack: the product of weights and values.
  Outputs MultiplyValues(const Stage& stage) {
    const auto& [tile, part, buffer] = stage;
    float* const output = this->Output(stage);
    const float* const rescale = this->Rescale(stage);
    if (!products_.ValuesSplit()) {
      products_.AddPlainly(*tile, part.from, part.to, this->Scores(stage), rescale, output);
      return {};
    }
    products_.MultiplyValues(*tile, part.from, part.to, buffer, weights_);
    const int64_t width = this->scratch_.value_width;
    for (int r = 0; r < tile->rows; ++r) {
      if (rescale[r] != 1.0f) ScaleRow(output + r * width, width, rescale[r], output + r * width);
    }
    return {output, products_.Product(), tile->rows * width};
  }

  int64_t ChunkProducts(const Stage& ahead, const Stage& behind) const {
    return products_.ScoreChunks(ahead.part.from, ahead.part.to) +
           products_.ValueChunks(behind.part.from, behind.part.to);
  }

  using Base::products_;
  Weights weights_;  // of the tile between its products
};

template <typename S, int kParts>
void AmxAttentionBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  const AmxBackend::Scope tiles;
  AmxAttentionRun<S, kParts>(args, block, scratch).Run();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
