// Compiled for AVX-512 alone, with products by AVX512_BF16: of bfloat16, and of float32 at "medium".
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
using DotProducts = PartsProducts<S, 1, DotBackend>;

// One tile of rows after the other.
template <typename S>
class DotAttentionRun final : public AttentionRun<DotProducts<S>> {
  using Base = AttentionRun<DotProducts<S>>;
  using typename Base::Stage;

 public:
  using Base::Base;

 private:
  void Online(int64_t begin, int64_t end) override {
    for (int64_t t = 0; const Stage stage = this->Next(t, begin, end);) {
      this->Score(stage, begin);
      this->FinishScores(stage, begin);
      this->MoveMaxima(stage);
      if (this->products_.ValuesSplit()) {
        TakeWeights(stage, begin, end);
      } else {
        for (int r = 0; r < stage.tile->rows; ++r) this->WeightsOfRow(stage, r, begin, end);
      }
      this->AddValues(stage);
    }
  }

  void TakeWeights(const Stage& stage, int64_t begin, int64_t end) {
    const auto& [tile, part, buffer] = stage;
    const int64_t first = part.from / kChunk;
    weights_.Start(this->Scores(stage) + first * kChunk, this->products_.Weights(0, buffer), this->Shift(stage),
                   tile->height, Chunks(part.to) - first, 0, this->args_.weights || this->args_.spec.dropout_keep);
    weights_.Finish();
    weights_.AddSums(this->scratch_.sum + tile->first_row);
    for (int r = 0; r < tile->rows; ++r) {
      if (this->args_.weights) this->StoreWeights(stage, r, begin, end);
      if (this->args_.spec.dropout_keep) Base::TakeWeights(stage, r, begin);
    }
  }

  TileWeights<1, DotProducts<S>::kStride> weights_;
};

template <typename S>
void DotBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  DotAttentionRun<S>(args, block, scratch).Run();
}

template <typename S>
constexpr AttentionKernel<S> kDotAttention{&AttentionScratchBytes<DotProducts<S>>, &DotBlock<S>};

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
