// What happens to a row of scores between the product with the keys and the softmax: softcap, biases, ALiBi, masks and
// the range of keys that causality and the window leave. What is dropped becomes -inf by selection, never by
// arithmetic: NaN ends here.
//
// One short sweep per feature over at most a key block of one row, which stays in L1, where a tile needs any of it.
// Called by attention-inl.h and decode-inl.h.

#if defined(HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_SCORE_MODIFIERS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "headwise/attention.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr T kMinusInf = -std::numeric_limits<T>::infinity();

// Keys go by in blocks of 1 KB a row.
template <typename T>
constexpr int kKeyBlock = 1024 / sizeof(T);

// One query of one head, and the keys [low, high) that causality and the window leave it.
struct Row {
  int64_t head, query, low, high;
};

template <typename T>
Row MakeRow(const AttentionArgs<T>& args, int64_t head, int64_t query) {
  const int64_t key_len = args.key.shape[2], position = query + args.spec.offset;
  const int64_t low = args.spec.left < 0 ? 0 : std::clamp<int64_t>(position - args.spec.left, 0, key_len);
  const int64_t high = args.spec.right < 0 ? key_len : std::clamp<int64_t>(position + args.spec.right + 1, 0, key_len);
  return {head, query, low, std::max(low, high)};
}

// What a tile of scores needs besides the product.
struct Changes {
  bool softcap = false, bias = false, alibi = false;
  bool keep = false;   // some key is dropped by a mask
  bool limit = false;  // some row keeps only some of these keys
  explicit operator bool() const { return softcap || bias || alibi || keep || limit; }
};

template <typename T>
Changes ChangesOf(const AttentionArgs<T>& args) {
  Changes changes;
  changes.softcap = args.spec.softcap > 0;
  changes.bias = !args.spec.bias.empty() || !args.spec.half_bias.empty();
  changes.alibi = args.spec.alibi_slopes != nullptr;
  changes.keep = !args.spec.keep.empty();
  return changes;
}

// tanh. Without vectors, Highway's makes an integer of its argument on the way, which nobody defines for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V TanhOrNaN(D d, V x) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  const auto nan = hn::IsNaN(x);
  return hn::IfThenElse(nan, x, hn::CallTanh(d, hn::IfThenZeroElse(nan, x)));
#else
  return hn::CallTanh(d, x);
#endif
}

// The keys [from, to) of a block, counted from its first; `all`: every row keeps every one of them.
struct KeptKeys {
  int64_t from, to;
  bool all;
};

// Narrows [from, to) to the panels in which a mask keeps a key for some of the rows.
template <typename T>
KeptKeys KeptByMask(const View<const std::uint8_t, 4>& keep, int64_t batch, const Row* rows, int count,
                    int64_t key_begin, int64_t from, int64_t to) {
  std::uint8_t any[kKeyBlock<T>] = {}, least = 255;
  const std::uint8_t* last = nullptr;
  for (int r = 0; r < count; ++r) {
    const std::uint8_t* kept = keep.at(batch, rows[r].head, rows[r].query, key_begin);
    if (kept == last) continue;  // a row for all queries
    last = kept;
    if (keep.stride[3] == 0) {
      std::fill(any + from, any + to, static_cast<std::uint8_t>(any[from] | *kept));
      least = std::min(least, *kept);
      continue;
    }
    for (int64_t j = from; j < to; ++j) {
      any[j] = static_cast<std::uint8_t>(any[j] | kept[j]);
      least = std::min(least, kept[j]);
    }
  }
  while (from < to && !any[to - 1]) --to;
  while (from < to && !any[from]) ++from;
  if (from == to) return {0, 0, false};
  return {from / kPanel<T> * kPanel<T>, to, least != 0};
}

// True where a byte of `keep` is not 0; `count` bytes may be read.
template <class D>
HWY_INLINE hn::Mask<D> LoadKeep(D d, const std::uint8_t* keep, int64_t count) {
  const hn::Rebind<std::uint8_t, D> d8;
  const hn::Rebind<std::uint32_t, D> d32;
  const hn::RebindToUnsigned<D> bits;
  std::uint8_t tail[hn::MaxLanes(d8)] = {};
  if (count < static_cast<int64_t>(hn::Lanes(d8))) {
    std::memcpy(tail, keep, static_cast<std::size_t>(count));
    keep = tail;
  }
  const auto wide = hn::PromoteTo(d32, hn::LoadU(d8, keep));
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return hn::RebindMask(d, hn::Ne(wide, hn::Zero(d32)));
  } else {
    return hn::RebindMask(d, hn::Ne(hn::PromoteTo(bits, wide), hn::Zero(bits)));
  }
}

// Zeroes what dropout drops of weights [from, to) and scales the rest; `drop` is the row's byte for key_begin.
template <typename T>
void DropWeights(const std::uint8_t* drop, int64_t stride, T scale, int64_t from, int64_t to, T* weights) {
  const Tag<T> d;
  if (stride == 0) {
    const T factor = *drop ? scale : T{0};
    for (int64_t j = from; j < to; ++j) weights[j] *= factor;
    return;
  }
  for (int64_t j = from; j < to; j += kLanes<T>) {
    const auto kept = LoadKeep(d, drop + j, to - j);
    hn::StoreU(hn::IfThenElseZero(kept, hn::Mul(hn::LoadU(d, weights + j), hn::Set(d, scale))), d, weights + j);
  }
}

// scores[j], from <= j < to, belongs to key key_begin + j. Room for whole vectors is there.
template <typename T>
class ScoreRow {
 public:
  ScoreRow(T* scores, int64_t key_begin, int64_t from, int64_t to)
      : scores_(scores), key_begin_(key_begin), from_(from), to_(to) {}

  // Once in the library for each instruction set and type, and not in each loop over rows.
  template <typename Stored>
  HWY_NOINLINE void Change(const AttentionArgs<Stored>& args, int64_t batch, const Row& row,
                           const Changes& changes) const {
    if (changes.softcap) Softcap(args.spec.softcap);
    const auto for_each_bias = [&](const auto& visit) HWY_ATTR {
      for (const auto& bias : args.spec.bias) visit(bias.at(batch, row.head, row.query, key_begin_), bias.stride[3]);
      if constexpr (kIs16Bit<Stored>) {
        for (const auto& bias : args.spec.half_bias)
          visit(bias.at(batch, row.head, row.query, key_begin_), bias.stride[3]);
      }
    };
    if (changes.bias) {
      for_each_bias([this](const auto* bias, int64_t stride) HWY_ATTR { AddBias(bias, stride); });
    }
    if (changes.alibi) AddAlibi(args.spec.alibi_slopes[row.head], row.query + args.spec.offset);
    // What has been added to -inf since may have made NaN of it.
    const bool odd_slope = changes.alibi && !std::isfinite(args.spec.alibi_slopes[row.head]);
    if (args.spec.bias.size() + args.spec.half_bias.size() > 1 || (changes.bias && odd_slope)) {
      for_each_bias([this](const auto* bias, int64_t stride) HWY_ATTR { Drop(bias, stride); });
    }
    if (changes.keep) {
      for (const auto& keep : args.spec.keep) Keep(keep.at(batch, row.head, row.query, key_begin_), keep.stride[3]);
    }
    if (changes.limit) Limit(row.low, row.high);
    // What the last vector holds beyond the keys.
    std::fill(scores_ + to_, scores_ + PackedColumns<T>(to_), kMinusInf<T>);
  }

  // The largest score; may overlook NaN.
  T Max() const {
    const Tag<T> d;
    auto max = hn::Set(d, kMinusInf<T>);
    for (int64_t j = from_; j < to_; j += kLanes<T>) max = hn::Max(max, hn::LoadU(d, scores_ + j));
    return MaxLane(d, max);
  }

 private:
  // Drops the keys outside [low, high).
  void Limit(int64_t low, int64_t high) const {
    const int64_t begin = std::clamp(low - key_begin_, from_, to_), end = std::clamp(high - key_begin_, begin, to_);
    std::fill(scores_ + from_, scores_ + begin, kMinusInf<T>);
    std::fill(scores_ + end, scores_ + to_, kMinusInf<T>);
  }

  // softcap * tanh(score / softcap)
  void Softcap(double softcap) const {
    const Tag<T> d;
    const auto in = hn::Set(d, static_cast<T>(1.0 / softcap));
    const auto out = hn::Set(d, static_cast<T>(softcap));
    for (int64_t j = from_; j < to_; j += kLanes<T>) {
      const auto x = hn::Mul(hn::LoadU(d, scores_ + j), in);
      hn::StoreU(hn::Mul(TanhOrNaN(d, x), out), d, scores_ + j);
    }
  }

  // A bias of -inf drops, whatever the score has become.
  template <typename B>
  void AddBias(const B* bias, int64_t stride) const {
    ForEachBias(bias, stride, [](auto score, auto b) HWY_ATTR { return hn::Add(score, b); });
  }
  template <typename B>
  void Drop(const B* bias, int64_t stride) const {
    ForEachBias(bias, stride, [](auto score, auto) HWY_ATTR { return score; });
  }

  // A score becomes function(score, bias), or -inf where the bias is.
  template <typename B, typename Function>
  HWY_INLINE void ForEachBias(const B* bias, int64_t stride, const Function& function) const {
    const Tag<T> d;
    const auto shared = BroadcastWide(d, bias), minus_inf = hn::Set(d, kMinusInf<T>);
    for (int64_t j = from_; j < to_; j += kLanes<T>) {
      auto b = shared;
      if (stride != 0) {
        b = to_ - j >= kLanes<T> ? LoadWide(d, bias + j) : FirstLanes{to_ - j}.Load(d, bias + j);
      }
      const auto changed = function(hn::LoadU(d, scores_ + j), b);
      hn::StoreU(hn::IfThenElse(hn::Eq(b, minus_inf), minus_inf, changed), d, scores_ + j);
    }
  }

  void AddAlibi(T slope, int64_t position) const {
    const Tag<T> d;
    const auto minus_slope = hn::Set(d, -slope);
    const auto step = hn::Set(d, static_cast<T>(kLanes<T>));
    auto distance = hn::Iota(d, static_cast<T>(key_begin_ + from_ - position));
    for (int64_t j = from_; j < to_; j += kLanes<T>) {
      hn::StoreU(hn::MulAdd(minus_slope, hn::Abs(distance), hn::LoadU(d, scores_ + j)), d, scores_ + j);
      distance = hn::Add(distance, step);
    }
  }

  void Keep(const std::uint8_t* keep, int64_t stride) const {
    const Tag<T> d;
    if (stride == 0) {
      if (!*keep) std::fill(scores_ + from_, scores_ + to_, kMinusInf<T>);
      return;
    }
    for (int64_t j = from_; j < to_; j += kLanes<T>) {
      const auto kept = LoadKeep(d, keep + j, to_ - j);
      hn::StoreU(hn::IfThenElse(kept, hn::LoadU(d, scores_ + j), hn::Set(d, kMinusInf<T>)), d, scores_ + j);
    }
  }

  T* scores_;
  int64_t key_begin_, from_, to_;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
