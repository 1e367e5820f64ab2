// Softmax steps written as short portions, which AMX interleaves with its tile products (NoWork in
// matmul/bf16_amx-inl.h is the interface): the weights of one tile of rows from its scores, and the outputs of another
// from its product with the values. The BF16 dot backend runs the same weights without interleaving.
//
// Operations execute in source order, which the compiler is kept from changing: four independent ones, then four that
// depend on them. A core's out-of-order window is short, shorter where two threads share the core, and the tile unit
// must not wait for it.

#if defined(HEADWISE_ATTENTION_BACKENDS_INTERLEAVED_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKENDS_INTERLEAVED_SOFTMAX_INL_H_
#undef HEADWISE_ATTENTION_BACKENDS_INTERLEAVED_SOFTMAX_INL_H_
#else
#define HEADWISE_ATTENTION_BACKENDS_INTERLEAVED_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "attention/exp-inl.h"
#include "hwy/highway.h"
#include "matmul/bf16_amx-inl.h"
#include "simd/rows-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// The weights exp(score - shift) of a tile, split into kTerms terms, and their sums. Idle until Start. A unit of work
// is 8 rows by a chunk of 32 keys; in it two rows at a time, four vectors of scores, go through kSteps steps.
template <int kTerms, int kStride>
class TileWeights {
 public:
  using V = hn::Vec<Tag<float>>;

  // Whether the max of score - shift is tracked (Exceeds).
  static constexpr bool kTrackMax = kTerms == 3;

  struct Unit {
    float* scores;
    std::uint32_t* weights;
    const float* shift;
    float* sums;
    float* max;
    bool in_place;
  };

  // Register reuse: x = score, then its reduced argument; n = exponent, then a term of the split; p = weight, then the
  // residual of the split.
  struct State {
    struct {
      V x, n, p;
    } vector[4];
    V max;
  };

  // `rows` rows (16 or 32) by `chunks` chunks, spread over chunk_products chunk products. With in_place the weights
  // overwrite the scores.
  void Start(float* scores, std::uint32_t* weights, const float* shift, int rows, int64_t chunks,
             int64_t chunk_products, bool in_place) {
    scores_ = scores, weights_ = weights, shift_ = shift, in_place_ = in_place;
    rows_ = rows, r_ = 0;
    left_ = rows / kUnitRows * static_cast<int>(chunks);
    share_ = static_cast<int>((left_ + 1) * kOne / std::max<int64_t>(1, chunk_products)) + 1, due_ = 0;
    std::fill_n(sums_, rows * kLanes<float>, 0.0f);
    std::fill_n(max_, kLanes<float>, kMinusInf<float>);
  }

  HWY_INLINE bool Begin(Unit& unit) {
    if ((due_ += share_) < kOne || left_ == 0) return false;
    due_ -= kOne;
    NextUnit(unit);
    return true;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit, State& state) {
    constexpr int kAll = kUnitRows / 2 * kSteps, kPortions = kInstructions<kTerms>;
    Steps<kPortion * kAll / kPortions, (kPortion + 1) * kAll / kPortions>(unit, state);
  }

  // Computes the remaining units.
  void Finish() {
    while (left_ > 0) {
      Unit unit;
      State state;
      NextUnit(unit);
      Steps<0, kUnitRows / 2 * kSteps>(unit, state);
    }
  }

  // Whether some score exceeds its shift by more than `slack`; NaN does not.
  bool Exceeds(float slack) const {
    const Tag<float> d;
    return !hn::AllFalse(d, hn::Gt(hn::Load(d, max_), hn::Set(d, slack)));
  }

  // sums[r] += that of row r. Rows come in fours.
  void AddSums(float* sums) const {
    const Tag<float> d;
    for (int r = 0; r < rows_; r += 4) {
      const auto lanes = [&](int row) HWY_ATTR { return hn::Load(d, sums_ + (r + row) * kLanes<float>); };
      float found[4];
      Reduce4(
          lanes(0), lanes(1), lanes(2), lanes(3), [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); }, found);
      for (int i = 0; i < 4; ++i) sums[r + i] += found[i];
    }
  }

 private:
  static constexpr int kUnitRows = 8;
  static constexpr int kOne = 1024;  // a unit, in the fixed-point arithmetic of share_ and due_

  static constexpr int kDegree = static_cast<int>(std::size(AttentionExpConstants<float>::kCoefficients)) - 1;
  static constexpr int kScale = 5 + kDegree;  // the last but one of AttentionExp's steps
  static constexpr int kSum = kScale + 2;
  static constexpr int kFirstTerm = kSum + 1;
  static constexpr int kStepsPerTerm = 3;  // the last term has two
  static constexpr int kSteps = kFirstTerm + kStepsPerTerm * (kTerms - 1) + 2;

  HWY_INLINE void NextUnit(Unit& unit) {
    unit = {
        scores_ + r_ * kStride, weights_ + r_ * kTileSide, shift_ + r_, sums_ + r_ * kLanes<float>, max_, in_place_};
    --left_;
    r_ += kUnitRows;
    if (r_ == rows_) r_ = 0, scores_ += kChunk, weights_ += kChunkSize<kTerms>;
  }

  template <int kFrom, int kTo>
  static HWY_INLINE void Steps(const Unit& unit, State& state) {
    if constexpr (kFrom < kTo) {
      Step<kFrom % kSteps, kFrom / kSteps * 2>(unit, state);
      Steps<kFrom + 1, kTo>(unit, state);
    }
  }

  template <int kStep, int kRow>
  static HWY_INLINE void Step(const Unit& unit, State& state) {
    const Tag<float> d;
    if constexpr (kTrackMax && kStep == 1 && kRow == 0) state.max = hn::Load(d, unit.max);
    if constexpr (kStep < kSum) {
      Exp<kStep, kRow, 0>(unit, state);
      Exp<kStep, kRow, 1>(unit, state);
      Exp<kStep, kRow, 2>(unit, state);
      Exp<kStep, kRow, 3>(unit, state);
    } else if constexpr (kStep == kSum) {
      Sum<kRow, 0>(unit, state);
      Sum<kRow, 1>(unit, state);
    } else {
      constexpr int kTerm = (kStep - kFirstTerm) / kStepsPerTerm, kTermStep = (kStep - kFirstTerm) % kStepsPerTerm;
      if constexpr (kTermStep == 0) RoundTerm<kTerm, 0>(state), RoundTerm<kTerm, 1>(state);
      if constexpr (kTermStep == 0) RoundTerm<kTerm, 2>(state), RoundTerm<kTerm, 3>(state);
      if constexpr (kTermStep == 1) StoreTerm<kTerm, kRow, 0>(unit, state), StoreTerm<kTerm, kRow, 1>(unit, state);
      if constexpr (kTermStep == 2)
        SubtractTerm<0>(state), SubtractTerm<1>(state), SubtractTerm<2>(state), SubtractTerm<3>(state);
    }
    if constexpr (kTrackMax && kStep == 1 && kRow == kUnitRows - 2) hn::Store(state.max, d, unit.max);
  }

  template <int kStep, int kRow, int kVector>
  static HWY_INLINE void Exp(const Unit& unit, State& state) {
    const Tag<float> d;
    using Constants = AttentionExpConstants<float>;
    const auto round = hn::Set(d, Constants::kRound), log2e = hn::Set(d, kLog2E<float>);
    float* const scores = unit.scores + (kRow + kVector / 2) * kStride + kVector % 2 * kLanes<float>;
    auto& [x, n, p] = state.vector[kVector];
    if constexpr (kStep == 0) {
      x = Keep(hn::Sub(hn::Load(d, scores), hn::Set(d, unit.shift[kRow + kVector / 2])));
    } else if constexpr (kStep == 1) {
      if constexpr (kTrackMax)
        state.max = Keep(hn::Max(x, state.max));  // MAXPS returns the second operand if either is NaN
      x = Keep(ClampBelow(d, x, Constants::kLowest));
    } else if constexpr (kStep == 2) {
      n = Keep(hn::MulAdd(x, log2e, round));
    } else if constexpr (kStep == 3) {
      p = Keep(hn::Sub(n, round));
    } else if constexpr (kStep == 4) {
      x = Keep(hn::MulSub(x, log2e, p));
    } else if constexpr (kStep == 5) {
      p = Keep(hn::MulAdd(Coefficient<kDegree>(), x, Coefficient<kDegree - 1>()));
    } else if constexpr (kStep < kScale) {
      p = Keep(hn::MulAdd(p, x, Coefficient<kScale - 1 - kStep>()));
    } else if constexpr (kStep == kScale) {
      const hn::RebindToUnsigned<Tag<float>> bits;
      n = Keep(hn::BitCast(d, hn::ShiftLeft<Constants::kMantissaBits>(hn::BitCast(bits, n))));
    } else {
      p = Keep(hn::Mul(p, n));
      if (unit.in_place) hn::Store(p, d, scores);
    }
  }

  template <int kPower>
  static HWY_INLINE V Coefficient() {
    using Constants = AttentionExpConstants<float>;
    return hn::Set(Tag<float>(), Constants::kShift * Constants::kCoefficients[kPower]);
  }

  // A row's sum is kept per lane; a weight's position alone determines its lane.
  template <int kRow, int kPair>
  static HWY_INLINE void Sum(const Unit& unit, State& state) {
    const Tag<float> d;
    float* const sum = unit.sums + (kRow + kPair) * kLanes<float>;
    hn::Store(hn::Add(hn::Load(d, sum), hn::Add(state.vector[2 * kPair].p, state.vector[2 * kPair + 1].p)), d, sum);
  }

  // StoreSplit<kTerms, kTerms == 3> in steps; n is the term. Truncation saves two operations of eight.
  template <int kTerm, int kVector>
  static HWY_INLINE void RoundTerm(State& state) {
    const Tag<float> d;
    const Tag<std::uint32_t> bits;
    auto& vector = state.vector[kVector];
    auto term = hn::BitCast(bits, vector.p);
    if constexpr (kTerms < 3) term = hn::Add(term, hn::Set(bits, 0x8000u));
    if constexpr (kTerm + 1 < kTerms) term = hn::And(term, hn::Set(bits, 0xFFFF0000u));
    vector.n = hn::BitCast(d, term);
    if constexpr (kTerms < 3 || kTerm + 1 < kTerms) vector.n = Keep(vector.n);
  }

  template <int kTerm, int kRow, int kPair>
  static HWY_INLINE void StoreTerm(const Unit& unit, const State& state) {
    const Tag<std::uint32_t> bits;
    const auto x = hn::BitCast(bits, state.vector[2 * kPair].n), y = hn::BitCast(bits, state.vector[2 * kPair + 1].n);
    hn::StoreU(hn::OrAnd(hn::ShiftRight<16>(x), y, hn::Set(bits, 0xFFFF0000u)), bits,
               unit.weights + (kRow + kPair) * kTileSide + kTerm * 2 * kTileSize);
  }

  template <int kVector>
  static HWY_INLINE void SubtractTerm(State& state) {
    auto& vector = state.vector[kVector];
    vector.p = Keep(hn::Sub(vector.p, vector.n));
  }

  // Keeps the operation that computes v in its place: volatile, like the tile instructions.
  static HWY_INLINE V Keep(V v) {
    asm volatile("" : "+v"(v.raw));
    return v;
  }

  float* scores_ = nullptr;
  std::uint32_t* weights_ = nullptr;
  const float* shift_ = nullptr;
  int rows_ = 0, r_ = 0;
  int left_ = 0;  // units not yet computed
  int share_ = 0, due_ = 0;
  bool in_place_ = false;
  alignas(64) float sums_[kSide * kLanes<float>];
  alignas(64) float max_[kLanes<float>];  // lanewise max of score - shift over all rows
};

// output[size] += product, in units of 32 vectors.
template <int kTerms>
class OutputAdditions {
 public:
  struct Unit {
    float* output;
    const float* product;  // null: no addition
  };

  OutputAdditions() = default;  // nothing to add
  OutputAdditions(float* output, const float* product, int64_t size)
      : output_(output), product_(product), end_(output + size) {}

  HWY_INLINE void Begin(Unit& unit) {
    const bool enough = end_ - output_ >= kUnit;
    unit = {output_, enough ? product_ : nullptr};
    if (enough) output_ += kUnit, product_ += kUnit;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit) {
    constexpr int kFrom = kPortion * kVectors / kInstructions<kTerms>;
    constexpr int kTo = (kPortion + 1) * kVectors / kInstructions<kTerms>;
    if (kFrom == kTo || !unit.product) return;
    Add<kFrom, kTo>(unit.output, unit.product);
  }

  // Adds the remaining vectors.
  void Finish() {
    for (; output_ < end_; output_ += kSide, product_ += kSide) Add<0, 2>(output_, product_);
  }

 private:
  static constexpr int kVectors = 32;
  static constexpr int64_t kUnit = kVectors * kLanes<float>;

  template <int kFrom, int kTo>
  static HWY_INLINE void Add(float* output, const float* product) {
    if constexpr (kFrom < kTo) {
      const Tag<float> d;
      float* const to = output + kFrom * kLanes<float>;
      hn::Store(hn::Add(hn::Load(d, to), hn::Load(d, product + kFrom * kLanes<float>)), d, to);
      Add<kFrom + 1, kTo>(output, product);
    }
  }

  float* output_ = nullptr;
  const float* product_ = nullptr;
  float* end_ = nullptr;
};

// Both, interleaved with the same products.
template <int kTerms, int kStride>
struct WeightsAndAdditions {
  using Weights = TileWeights<kTerms, kStride>;
  using Additions = OutputAdditions<kTerms>;
  using State = typename Weights::State;

  struct Unit {
    typename Weights::Unit weights;
    typename Additions::Unit additions;
  };

  HWY_INLINE bool Begin(Unit& unit) {
    if (!weights.Begin(unit.weights)) return false;
    additions.Begin(unit.additions);
    return true;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit, State& state) {
    Weights::template At<kPortion>(unit.weights, state);
    Additions::template At<kPortion>(unit.additions);
  }

  Weights& weights;
  Additions& additions;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
