// Score modifiers: everything between the product with the keys and the softmax, in this order:
//   softcap, biases (the relative bias is the last of them), ALiBi, keep-masks, blocks, window.
//
// Each modifier is one class with one SIMD body,
//   V operator()(D d, V score, int64_t j, int64_t left): scores of keys j to j + lanes of the block, `left` of which
//   exist,
// in a file of its own. ModifyRow applies them for every matmul backend and for decode, one short sweep per modifier
// over at most one key block of one row, which stays in L1. FusedModifiers are applied by the backends in registers.
//
// A new modifier needs: a member of AttentionSpec, a file here with its body, and here its flag, its condition in
// ModifiersOf and its line in ModifyRow.

#if defined(HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "attention/modifiers/alibi-inl.h"
#include "attention/modifiers/bias-inl.h"
#include "attention/modifiers/blocks-inl.h"
#include "attention/modifiers/keep-inl.h"
#include "attention/modifiers/softcap-inl.h"
#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A set of modifiers: those that a tile of scores needs.
using ScoreModifiers = unsigned;
enum : ScoreModifiers {
  kSoftcap = 1,
  kBias = 2,
  kAlibi = 4,
  kKeep = 8,     // some mask drops some key
  kWindow = 16,  // some row's window excludes some key
  kBlocks = 32,  // the block mask drops some key
};

// Those that a call needs; whether the window excludes keys differs from tile to tile.
template <typename T>
ScoreModifiers ModifiersOf(const AttentionSpec<T>& spec) {
  ScoreModifiers modifiers = 0;
  if (spec.softcap > 0) modifiers |= kSoftcap;
  if (!spec.bias.empty() || spec.relative_bias) modifiers |= kBias;
  if (spec.alibi_slopes) modifiers |= kAlibi;
  if (!spec.keep.empty()) modifiers |= kKeep;
  if (spec.blocks) modifiers |= kBlocks;
  return modifiers;
}

// Whether the matmul backend applies FusedModifiers; removes them from the set. ALiBi is fused unless softcap precedes
// it.
inline bool TakeFused(ScoreModifiers& modifiers) {
  const bool fused = (modifiers & kAlibi) && !(modifiers & kSoftcap);
  if (fused) modifiers &= ~kAlibi;
  return fused;
}

// The modifiers that a matmul backend applies right after the product, while scores are in registers (FMA) or in L1
// (bf16 backends), which saves a sweep.
template <typename T>
class FusedModifiers {
 public:
  template <typename Stored>
  explicit FusedModifiers(const AttentionSpec<Stored>& spec) : slopes_(spec.alibi_slopes), offset_(spec.offset) {}

  // For a row's scores of a block whose first key is key_begin.
  HWY_INLINE Alibi<T> ForRow(const Row& row, int64_t key_begin) const {
    return Alibi<T>(slopes_[row.head], key_begin - row.query - offset_);
  }

 private:
  const T* slopes_;
  int64_t offset_;
};

// scores[from, to) = modifier(scores[from, to)). There is room for whole vectors.
template <typename T, class Modifier>
HWY_INLINE void ModifyScores(const Modifier& modifier, int64_t from, int64_t to, T* scores) {
  const Tag<T> d;
  for (int64_t j = from; j < to; j += kLanes<T>) {
    hn::StoreU(modifier(d, hn::LoadU(d, scores + j), j, to - j), d, scores + j);
  }
}

// Applies `modifiers` to scores[from, to) of a row; scores[0] belongs to key key_begin. The rest of the last vector
// becomes -inf. Compiled once per target and type, not inlined into each loop over rows.
template <typename T, typename Stored>
HWY_NOINLINE void ModifyRow(const AttentionArgs<Stored>& args, int64_t batch, const Row& row, ScoreModifiers modifiers,
                            int64_t key_begin, int64_t from, int64_t to, T* scores) {
  const AttentionSpec<Stored>& spec = args.spec;
  if (modifiers & kSoftcap) ModifyScores(Softcap<T>(spec.softcap), from, to, scores);
  if (modifiers & kBias) {
    bool first = true;
    ForEachBias(args, batch, row, key_begin, [&](const auto& bias) HWY_ATTR {
      using B = std::decay_t<decltype(bias)>;
      if (first) {
        ModifyScores(AddBias<T, B, BiasStep::kFirst>(bias), from, to, scores);
      } else {
        ModifyScores(AddBias<T, B, BiasStep::kFurther>(bias), from, to, scores);
      }
      first = false;
    });
  }
  if (modifiers & kAlibi) ModifyScores(FusedModifiers<T>(spec).ForRow(row, key_begin), from, to, scores);
  // A later addend may have made NaN of a bias of -inf.
  const bool infinite_slope = (modifiers & kAlibi) && !std::isfinite(spec.alibi_slopes[row.head]);
  const std::size_t biases = spec.bias.size() + (spec.relative_bias ? 1 : 0);
  const std::size_t followed = infinite_slope ? biases : biases - 1;  // biases before an addend
  if ((modifiers & kBias) && followed > 0) {
    std::size_t i = 0;
    ForEachBias(args, batch, row, key_begin, [&](const auto& bias) HWY_ATTR {
      if (i++ >= followed) return;
      ModifyScores(AddBias<T, std::decay_t<decltype(bias)>, BiasStep::kDrop>(bias), from, to, scores);
    });
  }
  if (modifiers & kKeep) {
    for (const auto& keep : spec.keep) {
      const std::uint8_t* kept = keep.at(batch, row.head, row.query, key_begin);
      ModifyScores(KeepMask<T>(kept, keep.stride[3]), from, to, scores);
    }
  }
  if (modifiers & kBlocks) DropByBlocks(spec.blocks, batch, row, key_begin, from, to, scores);
  if (modifiers & kWindow) DropOutside(row, key_begin, from, to, scores);
  std::fill(scores + to, scores + PackedColumns<T>(to), kMinusInf<T>);
}

// The max of scores[from, to), -inf in the rest of the last vector; may overlook NaN.
template <typename T>
T MaxScore(const T* scores, int64_t from, int64_t to) {
  const Tag<T> d;
  auto max = hn::Set(d, kMinusInf<T>);
  for (int64_t j = from; j < to; j += kLanes<T>) max = hn::Max(max, hn::LoadU(d, scores + j));
  return MaxLane(d, max);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
