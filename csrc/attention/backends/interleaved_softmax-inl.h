// What the vector unit does alongside the products of attention on tiles (NoWork in amx_parts-inl.h says how): the
// weights of one tile of rows from its scores, and the outputs of another from its product with the values.
//
// Operations come in the order in which they stand here, which the compiler is kept from changing: four that do not
// wait for each other, then four that need them. A processor looks ahead only so far, less where its core is shared by
// two threads, and the tile unit must not wait for it.

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

// exp(score - shift) of a tile, in parts, and their sums; nothing before it is started. A unit is 8 rows by a chunk of
// 32 keys; in it, two rows at a time, four vectors of scores, go through kSteps steps. attention_dot.cc takes all at
// once.
template <int kParts, int kStride>
class TileWeights {
 public:
  using V = hn::Vec<Tag<float>>;

  // Whether it looks out for scores greater than their shift (Exceeds).
  static constexpr bool kWatch = kParts == 3;

  struct Unit {
    float* scores;
    std::uint32_t* weights;
    const float* shift;
    float* sums;
    float* greatest;
    bool in_place;
  };

  // Of the two rows: a score, then its parts; its exponent, then a part; its weight, then what is left of it.
  struct State {
    struct {
      V x, n, p;
    } vector[4];
    V greatest;
  };

  // Of `rows` rows, 16 or 32, by `chunks` chunks, to go along with chunk_products products. With in_place the scores
  // become weights too.
  void Start(float* scores, std::uint32_t* weights, const float* shift, int rows, int64_t chunks,
             int64_t chunk_products, bool in_place) {
    scores_ = scores, weights_ = weights, shift_ = shift, in_place_ = in_place;
    rows_ = rows, r_ = 0;
    left_ = rows / kUnitRows * static_cast<int>(chunks);
    share_ = static_cast<int>((left_ + 1) * kOne / std::max<int64_t>(1, chunk_products)) + 1, due_ = 0;
    std::fill_n(sums_, rows * kLanes<float>, 0.0f);
    std::fill_n(greatest_, kLanes<float>, kMinusInf<float>);
  }

  HWY_INLINE bool Begin(Unit& unit) {
    if ((due_ += share_) < kOne || left_ == 0) return false;
    due_ -= kOne;
    Take(unit);
    return true;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit, State& state) {
    constexpr int kAll = kUnitRows / 2 * kSteps, kPortions = kInstructions<kParts>;
    Steps<kPortion * kAll / kPortions, (kPortion + 1) * kAll / kPortions>(unit, state);
  }

  // What is left.
  void Finish() {
    while (left_ > 0) {
      Unit unit;
      State state;
      Take(unit);
      Steps<0, kUnitRows / 2 * kSteps>(unit, state);
    }
  }

  // Whether some score exceeds its shift by more than `slack`; NaN does not.
  bool Exceeds(float slack) const {
    const Tag<float> d;
    return !hn::AllFalse(d, hn::Gt(hn::Load(d, greatest_), hn::Set(d, slack)));
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
  static constexpr int kOne = 1024;  // unit

  static constexpr int kDegree = static_cast<int>(std::size(AttentionExpConstants<float>::kCoefficients)) - 1;
  static constexpr int kScale = 5 + kDegree;  // the last but one of AttentionExp's steps
  static constexpr int kSum = kScale + 2;
  static constexpr int kFirstPart = kSum + 1;
  static constexpr int kStepsOfPart = 3;  // the last part has two
  static constexpr int kSteps = kFirstPart + kStepsOfPart * (kParts - 1) + 2;

  HWY_INLINE void Take(Unit& unit) {
    unit = {scores_ + r_ * kStride,
            weights_ + r_ * kTileSide,
            shift_ + r_,
            sums_ + r_ * kLanes<float>,
            greatest_,
            in_place_};
    --left_;
    r_ += kUnitRows;
    if (r_ == rows_) r_ = 0, scores_ += kChunk, weights_ += kChunkSize<kParts>;
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
    if constexpr (kWatch && kStep == 1 && kRow == 0) state.greatest = hn::Load(d, unit.greatest);
    if constexpr (kStep < kSum) {
      Exp<kStep, kRow, 0>(unit, state);
      Exp<kStep, kRow, 1>(unit, state);
      Exp<kStep, kRow, 2>(unit, state);
      Exp<kStep, kRow, 3>(unit, state);
    } else if constexpr (kStep == kSum) {
      Sum<kRow, 0>(unit, state);
      Sum<kRow, 1>(unit, state);
    } else {
      constexpr int kPart = (kStep - kFirstPart) / kStepsOfPart, kOfPart = (kStep - kFirstPart) % kStepsOfPart;
      if constexpr (kOfPart == 0) CutPart<kPart, 0>(state), CutPart<kPart, 1>(state);
      if constexpr (kOfPart == 0) CutPart<kPart, 2>(state), CutPart<kPart, 3>(state);
      if constexpr (kOfPart == 1) StorePart<kPart, kRow, 0>(unit, state), StorePart<kPart, kRow, 1>(unit, state);
      if constexpr (kOfPart == 2) TakePart<0>(state), TakePart<1>(state), TakePart<2>(state), TakePart<3>(state);
    }
    if constexpr (kWatch && kStep == 1 && kRow == kUnitRows - 2) hn::Store(state.greatest, d, unit.greatest);
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
      if constexpr (kWatch) state.greatest = Keep(hn::Max(x, state.greatest));  // of a NaN the second
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

  // A row's sum runs in lanes: which one adds up which weight follows from its place alone.
  template <int kRow, int kPair>
  static HWY_INLINE void Sum(const Unit& unit, State& state) {
    const Tag<float> d;
    float* const sum = unit.sums + (kRow + kPair) * kLanes<float>;
    hn::Store(hn::Add(hn::Load(d, sum), hn::Add(state.vector[2 * kPair].p, state.vector[2 * kPair + 1].p)), d, sum);
  }

  // As StoreSplit<kParts, kParts == 3>, in steps; n is the part. Cutting off saves two operations of eight.
  template <int kPart, int kVector>
  static HWY_INLINE void CutPart(State& state) {
    const Tag<float> d;
    const Tag<std::uint32_t> bits;
    auto& vector = state.vector[kVector];
    auto part = hn::BitCast(bits, vector.p);
    if constexpr (kParts < 3) part = hn::Add(part, hn::Set(bits, 0x8000u));
    if constexpr (kPart + 1 < kParts) part = hn::And(part, hn::Set(bits, 0xFFFF0000u));
    vector.n = hn::BitCast(d, part);
    if constexpr (kParts < 3 || kPart + 1 < kParts) vector.n = Keep(vector.n);
  }

  template <int kPart, int kRow, int kPair>
  static HWY_INLINE void StorePart(const Unit& unit, const State& state) {
    const Tag<std::uint32_t> bits;
    const auto x = hn::BitCast(bits, state.vector[2 * kPair].n), y = hn::BitCast(bits, state.vector[2 * kPair + 1].n);
    hn::StoreU(hn::OrAnd(hn::ShiftRight<16>(x), y, hn::Set(bits, 0xFFFF0000u)), bits,
               unit.weights + (kRow + kPair) * kTileSide + kPart * 2 * kTileSize);
  }

  template <int kVector>
  static HWY_INLINE void TakePart(State& state) {
    auto& vector = state.vector[kVector];
    vector.p = Keep(hn::Sub(vector.p, vector.n));
  }

  // v, where it stands: volatile as the instructions on tiles are.
  static HWY_INLINE V Keep(V v) {
    asm volatile("" : "+v"(v.raw));
    return v;
  }

  float* scores_ = nullptr;
  std::uint32_t* weights_ = nullptr;
  const float* shift_ = nullptr;
  int rows_ = 0, r_ = 0;
  int left_ = 0;  // units
  int share_ = 0, due_ = 0;
  bool in_place_ = false;
  alignas(64) float sums_[kSide * kLanes<float>];
  alignas(64) float greatest_[kLanes<float>];  // of scores less their shift, over rows
};

// output[size] += product, in units of 32 vectors.
template <int kParts>
class AmxOutputs {
 public:
  struct Unit {
    float* output;
    const float* product;  // null: nothing to do
  };

  AmxOutputs() = default;  // none
  AmxOutputs(float* output, const float* product, int64_t size)
      : output_(output), product_(product), end_(output + size) {}

  HWY_INLINE void Begin(Unit& unit) {
    const bool enough = end_ - output_ >= kUnit;
    unit = {output_, enough ? product_ : nullptr};
    if (enough) output_ += kUnit, product_ += kUnit;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit) {
    constexpr int kFrom = kPortion * kVectors / kInstructions<kParts>;
    constexpr int kTo = (kPortion + 1) * kVectors / kInstructions<kParts>;
    if (kFrom == kTo || !unit.product) return;
    Add<kFrom, kTo>(unit.output, unit.product);
  }

  // What is left.
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

// Both at once.
template <int kParts, int kStride>
struct AmxWeightsAndOutputs {
  using Weights = TileWeights<kParts, kStride>;
  using Outputs = AmxOutputs<kParts>;
  using State = typename Weights::State;

  struct Unit {
    typename Weights::Unit weights;
    typename Outputs::Unit outputs;
  };

  HWY_INLINE bool Begin(Unit& unit) {
    if (!weights.Begin(unit.weights)) return false;
    outputs.Begin(unit.outputs);
    return true;
  }

  template <int kPortion>
  static HWY_INLINE void At(const Unit& unit, State& state) {
    Weights::template At<kPortion>(unit.weights, state);
    Outputs::template At<kPortion>(unit.outputs);
  }

  Weights& weights;
  Outputs& outputs;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
