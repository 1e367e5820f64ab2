// Attention on tiles: the tile unit and the vector unit at work on three tiles of rows at once.
//
// While the tile unit multiplies the weights of one tile with the values and then the queries of another with the keys,
// the vector unit makes weights of the scores of the one between them: about ten operations after each instruction on
// tiles. So finely since a processor looks ahead only so far; where a core is shared by two threads, tens of operations
// in a row, or loads of tiles in a row, already make the units take turns.
//
// Per tile of 32 rows by 128 keys, at 64 features and three parts: 384 products of 16 cycles, and 5,500 vector
// operations, one per cycle while tiles are multiplied, for these take one of two ports.

#if defined(HEADWISE_KERNELS_ATTENTION_AMX_RUN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_ATTENTION_AMX_RUN_INL_H_
#undef HEADWISE_KERNELS_ATTENTION_AMX_RUN_INL_H_
#else
#define HEADWISE_KERNELS_ATTENTION_AMX_RUN_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/attention-inl.h"
#include "kernels/attention_amx-inl.h"
#include "kernels/attention_exp-inl.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S, int kParts>
class AmxAttentionRun final : public AttentionRun<AmxProducts<S, kParts>> {
  using Products = AmxProducts<S, kParts>;
  using Base = AttentionRun<Products>;
  using typename Base::Part;
  using typename Base::Stage;

 public:
  using Base::Base;

 private:
  // The weights of a tile, in parts, from its scores: a pair of vectors (32 keys of a row) after the other, chunk by
  // chunk, each in some portions. A row's sum runs as in Exponentials, its lanes in memory.
  class Weights {
   public:
    Weights(const AmxAttentionRun& run, const Stage& stage, int64_t chunk_products, float* sums)
        : scores_(run.Scores(stage) + First(stage) * kChunk),
          weights_(run.products_.Weights(0, stage.buffer)),
          shift_(run.Shift(stage)),
          sums_(sums),
          rows_((stage.tile->rows + 3) / 4 * 4),
          left_(rows_ * static_cast<int>(Chunks(stage.part.to) - First(stage))),
          share_(static_cast<int>((left_ / kPairs + 1) * kOne / std::max<int64_t>(1, chunk_products)) + 1),
          in_place_(run.args_.weights || run.args_.drop) {
      std::fill_n(sums, rows_ * kChunk, 0.0f);
    }
    Weights() = default;  // none

    // Pairs on their way.
    struct Pair {
      hn::Vec<Tag<float>> x, y, n_x, n_y;
    };
    struct State {
      Pair pair[kParts == 3 ? 4 : 2];
    };

    HWY_INLINE bool Begin() {
      if ((due_ += share_) < kOne || left_ < kPairs) return false;
      due_ -= kOne;
      return true;
    }

    // A pair's steps wait for each other, so those of kGroup pairs take turns: with three parts a step of one pair at a
    // time, with fewer a half of its steps, or of those of two pairs.
    template <int kPortion>
    HWY_INLINE void At(State& state) {
      constexpr int kOfGroup = kPortion % kPortionsOfGroup;
      if constexpr (kPortion >= kPairs / kGroup * kPortionsOfGroup) {
        NoWork::State none;
        return NoWork().At<kPortion>(none);
      } else if constexpr (kParts == 3) {
        Step<kOfGroup / kGroup>(state.pair[kOfGroup % kGroup], kOfGroup % kGroup);
      } else if constexpr (kParts == 2) {
        Half<kOfGroup / kGroup>(state.pair[kOfGroup % kGroup], kOfGroup % kGroup);
      } else {
        Half<kOfGroup>(state.pair[0], 0);
        Half<kOfGroup>(state.pair[1], 1);
      }
      if constexpr (kOfGroup == kPortionsOfGroup - 1) Next(kGroup);
    }

    void Finish() {
      for (Pair pair; left_ > 0; Next(1)) {
        Half<0>(pair, 0);
        Half<1>(pair, 0);
      }
    }

   private:
    static constexpr int kGroup = kParts == 3 ? 4 : 2;  // divides rows_
    static constexpr int kPortionsOfGroup = kParts == 3 ? 16 : kParts == 2 ? 4 : 2;
    // Pairs that go along with the product of a chunk.
    static constexpr int kPairs = kInstructions<kParts> / kPortionsOfGroup * kGroup;
    static constexpr int kOne = 1024;

    static int64_t First(const Stage& stage) { return stage.part.from / kChunk; }

    template <int kHalf>
    HWY_INLINE void Half(Pair& pair, int ahead) {
      Step<2 * kHalf>(pair, ahead);
      Step<2 * kHalf + 1>(pair, ahead);
    }

    // `ahead`: how many pairs from the next one on.
    template <int kStep>
    HWY_INLINE void Step(Pair& pair, int ahead) {
      if constexpr (kStep == 0) {
        const float* scores = scores_ + ahead * Products::kStride;
        const auto shift = hn::Set(d_, shift_[r_ + ahead]);
        ExpReduce(d_, hn::Sub(hn::Load(d_, scores), shift), pair.n_x, pair.x);
        ExpReduce(d_, hn::Sub(hn::Load(d_, scores + kLanes<float>), shift), pair.n_y, pair.y);
      } else if constexpr (kStep == 1) {
        pair.x = ExpPolynomial(d_, pair.x);
        pair.y = ExpPolynomial(d_, pair.y);
      } else if constexpr (kStep == 2) {
        pair.x = ExpScale(d_, pair.x, pair.n_x);
        pair.y = ExpScale(d_, pair.y, pair.n_y);
        if (in_place_) {
          float* scores = scores_ + ahead * Products::kStride;
          hn::Store(pair.x, d_, scores);
          hn::Store(pair.y, d_, scores + kLanes<float>);
        }
        float* sums = sums_ + (r_ + ahead) * kChunk;
        hn::Store(hn::Add(hn::Load(d_, sums), pair.x), d_, sums);
        hn::Store(hn::Add(hn::Load(d_, sums + kLanes<float>), pair.y), d_, sums + kLanes<float>);
        StoreWeightPart<kParts, 0>(pair.x, pair.y, weights_ + ahead * amx::kTileWords);
      } else {
        if constexpr (kParts > 1) StoreWeightPart<kParts, 1>(pair.x, pair.y, weights_ + ahead * amx::kTileWords);
        if constexpr (kParts > 2) StoreWeightPart<kParts, 2>(pair.x, pair.y, weights_ + ahead * amx::kTileWords);
        return;
      }
      // Volatile as the instructions on tiles are: it stays between them.
      asm volatile("" : "+v"(pair.x.raw), "+v"(pair.y.raw), "+v"(pair.n_x.raw), "+v"(pair.n_y.raw));
    }

    HWY_INLINE void Next(int pairs) {
      left_ -= pairs;
      r_ += pairs;
      const bool wrap = r_ >= rows_;
      scores_ += pairs * Products::kStride - (wrap ? rows_ * Products::kStride - kChunk : 0);
      weights_ += pairs * amx::kTileWords + (wrap ? kChunkSize<kParts> - rows_ * amx::kTileWords : 0);
      r_ -= wrap ? rows_ : 0;
    }

    static constexpr Tag<float> d_{};
    float* scores_ = nullptr;
    std::uint32_t* weights_ = nullptr;
    const float* shift_ = nullptr;
    float* sums_ = nullptr;
    int rows_ = 0, r_ = 0;  // rows: with some beyond the last, to fill a group
    int left_ = 0;          // pairs
    int share_ = 0, due_ = 0;
    bool in_place_ = false;  // of the scores too
  };

  void Online(int64_t begin, int64_t end) override {
    // Weights that go to values that do not split are made by rows.
    const bool by_rows = !this->products_.ValuesSplit();
    Stage behind, now, ahead;
    int64_t t = 0;
    for (int buffer = 0; (ahead = this->Next(t, begin, end, buffer)) || now || behind; buffer ^= 1) {
      Weights weights;
      if (now) {
        this->FinishScores(now, begin);
        this->MoveMaxima(now);
        if (by_rows) {
          for (int r = 0; r < now.tile->rows; ++r) this->WeightsOfRow(now, r, begin, end);
        } else {
          weights = Weights(*this, now, ChunkProducts(ahead, behind), sums_);
        }
      }
      // The tile behind first: the one ahead takes over its buffer.
      if (behind) this->AddValues(behind, weights);
      if (ahead) this->Score(ahead, begin, weights);
      weights.Finish();
      if (now && !by_rows) {
        AddSums(now);
        for (int r = 0; r < now.tile->rows; ++r) {
          if (this->args_.weights) this->StoreWeights(now, r, begin, end);
          if (this->args_.drop) this->TakeWeights(now, r, begin);
        }
      }
      behind = now, now = ahead;
    }
  }

  int64_t ChunkProducts(const Stage& ahead, const Stage& behind) const {
    return this->products_.ScoreChunks(ahead.part.from, ahead.part.to) +
           this->products_.ValueChunks(behind.part.from, behind.part.to);
  }

  void AddSums(const Stage& stage) const {
    const Tag<float> d;
    float* sums = this->scratch_.sum + stage.tile->first_row;
    for (int r = 0; r < stage.tile->rows; r += 4) {
      const auto sum = [&](int row) HWY_ATTR {
        const float* lanes = sums_ + (r + row) * kChunk;
        return hn::Add(hn::Load(d, lanes), hn::Load(d, lanes + kLanes<float>));
      };
      float found[4];
      Reduce4(
          sum(0), sum(1), sum(2), sum(3), [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); }, found);
      for (int i = 0; i < 4; ++i) sums[r + i] += found[i];
    }
  }

  alignas(64) float sums_[Products::kRows * kChunk];  // of the rows of a tile, in lanes
};

template <typename S, int kParts>
void AmxAttentionBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  const amx::Tiles tiles;
  AmxAttentionRun<S, kParts>(args, block, scratch).Run();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
