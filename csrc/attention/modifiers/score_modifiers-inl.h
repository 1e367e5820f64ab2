// Score modifiers: everything between the product with the keys and the softmax, in this order:
//   softcap, biases, ALiBi, keep-masks, window.
//
// Each modifier is one class with one SIMD body,
//   V operator()(D d, V score, int64_t j, int64_t left): scores of keys j to j + lanes of the block, `left` of which
//   exist,
// in a file of its own. ModifyRow applies them for every matmul backend and for decode, one short sweep per modifier
// over at most one key block of one row, which stays in L1. FusedModifiers are applied by the backends in registers.
//
// A new modifier needs: a member of AttentionSpec, a file here with its body, and its lines in ScoreModifiers and
// ModifyRow.

#if defined(HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/modifiers/alibi-inl.h"
#include "attention/modifiers/bias-inl.h"
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

// The modifiers that a tile of scores needs.
struct ScoreModifiers {
  bool softcap = false, bias = false, alibi = false;
  bool keep = false;    // some mask drops some key
  bool window = false;  // some row's window excludes some key

  explicit operator bool() const { return softcap || bias || alibi || keep || window; }

  // Leaves the fused modifiers to the matmul backend; whether there are any. ALiBi is fused unless softcap precedes it.
  bool TakeFused() {
    const bool fused = alibi && !softcap;
    alibi &= !fused;
    return fused;
  }
};

template <typename T>
ScoreModifiers ModifiersOf(const AttentionSpec<T>& spec) {
  ScoreModifiers modifiers;
  modifiers.softcap = spec.softcap > 0;
  modifiers.bias = !spec.bias.empty();
  modifiers.alibi = spec.alibi_slopes != nullptr;
  modifiers.keep = !spec.keep.empty();
  return modifiers;
}

// The modifiers that a matmul backend applies right after the product, while scores are in registers or in L1: of a
// long sequence ALiBi costs nothing there.
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
HWY_NOINLINE void ModifyRow(const AttentionArgs<Stored>& args, int64_t batch, const Row& row,
                            const ScoreModifiers& modifiers, int64_t key_begin, int64_t from, int64_t to, T* scores) {
  const AttentionSpec<Stored>& spec = args.spec;
  if (modifiers.softcap) ModifyScores(Softcap<T>(spec.softcap), from, to, scores);
  if (modifiers.bias) {
    ForEachBias(args, batch, row, key_begin, [&](const auto* bias, int64_t stride) HWY_ATTR {
      ModifyScores(AddBias<T, std::decay_t<decltype(*bias)>, false>(bias, stride), from, to, scores);
    });
  }
  if (modifiers.alibi) ModifyScores(FusedModifiers<T>(spec).ForRow(row, key_begin), from, to, scores);
  // A later addend may have made NaN of a bias of -inf.
  const bool infinite_slope = modifiers.alibi && !std::isfinite(spec.alibi_slopes[row.head]);
  if (spec.bias.size() > 1 || (modifiers.bias && infinite_slope)) {
    ForEachBias(args, batch, row, key_begin, [&](const auto* bias, int64_t stride) HWY_ATTR {
      ModifyScores(AddBias<T, std::decay_t<decltype(*bias)>, true>(bias, stride), from, to, scores);
    });
  }
  if (modifiers.keep) {
    for (const auto& keep : spec.keep) {
      const std::uint8_t* kept = keep.at(batch, row.head, row.query, key_begin);
      ModifyScores(KeepMask<T>(kept, keep.stride[3]), from, to, scores);
    }
  }
  if (modifiers.window) DropOutside(row, key_begin, from, to, scores);
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
