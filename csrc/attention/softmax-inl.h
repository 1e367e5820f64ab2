// The online softmax, shared by attention for many queries (kernel-inl.h) and decode (decode/kernel-inl.h): the keys of
// a block of queries, and the steps from scores to weights.

#if defined(HEADWISE_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_SOFTMAX_INL_H_
#undef HEADWISE_ATTENTION_SOFTMAX_INL_H_
#else
#define HEADWISE_ATTENTION_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "attention/exp-inl.h"
#include "attention/kernel.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A range of keys.
struct KeyRange {
  int64_t begin, end;  // begin: a multiple of a panel
};

// Keys that some of the queries may keep, by the window (modifiers/window-inl.h) and by masks that all heads and
// queries share (key padding).
template <typename T>
KeyRange KeysOf(const AttentionArgs<T>& args, int64_t batch, int64_t query_begin, int64_t query_end) {
  int64_t begin = MakeRow(args, 0, query_begin).low;
  int64_t end = std::max(begin, MakeRow(args, 0, query_end - 1).high);
  for (const auto& keep : args.spec.keep) {
    const bool shared = (keep.stride[1] == 0 || keep.shape[1] == 1) && (keep.stride[2] == 0 || keep.shape[2] == 1);
    if (!shared || keep.stride[3] == 0) continue;
    const std::uint8_t* kept = keep.at(batch);
    while (end > begin && !kept[end - 1]) --end;
    while (begin < end && !kept[begin]) ++begin;
  }
  constexpr int64_t kWidth = kPanel<Accumulator<T>>;
  return {begin / kWidth * kWidth, end};
}

// Calls function(begin, end) for the blocks of the range, which begin at multiples of their size from key 0.
template <class Function>
HWY_INLINE void ForKeyBlocks(int64_t size, const KeyRange& keys, const Function& function) {
  for (int64_t begin = keys.begin; begin < keys.end;) {
    const int64_t end = std::min(keys.end, (begin / size + 1) * size);
    function(begin, end);
    begin = end;
  }
}

// The running maxima of `rows` rows. On entry shift[r] is the max of the new scores. If it exceeds max[r] by more than
// `slack`, max[r] becomes shift[r]. rescale[r] = exp(old max - new max) is the factor for the outputs so far, and is
// applied to sum[r]. On return shift[r] is the subtrahend of the new scores: the max, or 0 where all scores were -inf
// (their exponentials are 0 either way).
template <typename T>
HWY_INLINE void UpdateMaxima(int64_t rows, T* max, T* sum, T* shift, T* rescale, T slack = T{0}) {
  const Tag<T> d;
  ForEachVector(d, rows, [&](auto lanes, int64_t r) HWY_ATTR {
    const auto before = lanes.Load(d, max + r), found = lanes.Load(d, shift + r);
    const auto stays = hn::Le(found, hn::Add(before, hn::Set(d, slack)));  // not if either is NaN
    const auto now = hn::IfThenElse(stays, before, found);
    const auto same = hn::Eq(before, now);
    const auto scale = hn::IfThenElse(same, hn::Set(d, T{1}), AttentionExp(d, hn::Sub(before, now)));
    lanes.Store(now, d, max + r);
    lanes.Store(scale, d, rescale + r);
    lanes.Store(hn::Mul(lanes.Load(d, sum + r), scale), d, sum + r);
    lanes.Store(hn::IfThenZeroElse(hn::Eq(now, hn::Set(d, kMinusInf<T>)), now), d, shift + r);
  });
}

// scores[from, to) become exp(score - shift), in place; returns their sum. `from` is a multiple of a panel. A score's
// position alone determines the lane that adds it, so zeros at either end change no bit of the sum. NaN stays NaN.
template <typename T>
HWY_INLINE T Exponentials(T* scores, int64_t from, int64_t to, T shift) {
  const Tag<T> d;
  const auto minus_shift = hn::Set(d, -shift);
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t j = from;
  for (; j + kPanel<T> <= to; j += kPanel<T>) {
    const auto p0 = AttentionExp(d, hn::Add(hn::LoadU(d, scores + j), minus_shift));
    const auto p1 = AttentionExp(d, hn::Add(hn::LoadU(d, scores + j + kLanes<T>), minus_shift));
    hn::StoreU(p0, d, scores + j);
    hn::StoreU(p1, d, scores + j + kLanes<T>);
    even = hn::Add(even, p0);
    odd = hn::Add(odd, p1);
  }
  bool is_odd = false;
  ForEachVector(d, to - j, [&](auto lanes, int64_t i) HWY_ATTR {
    const auto p = lanes.Or(d, AttentionExp(d, hn::Add(lanes.Load(d, scores + j + i), minus_shift)), hn::Zero(d));
    lanes.Store(p, d, scores + j + i);
    (is_odd ? odd : even) = hn::Add(is_odd ? odd : even, p);
    is_odd = true;
  });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

// The final factor of an output of weights exp(score - max): 1 / sum, or 1 for a row that keeps nothing, whose output
// is 0.
template <typename T>
T Normaliser(T sum) {
  return sum == T{0} ? T{1} : T{1} / sum;
}

// exp(sink - max) where the sink is the max: 1, or NaN for an infinite sink, as for an infinite score.
template <typename T>
T SinkTerm(T sink) {
  return T{1} + (sink - sink);
}

template <typename T>
T LogSumExp(T max, T sum) {
  if (sum == T{0}) return kMinusInf<T>;
  return static_cast<T>(static_cast<double>(max) + std::log(static_cast<double>(sum)));
}

// Whether x[0, count) holds neither NaN nor Inf. Whole vectors.
template <typename T>
bool AllFinite(const T* x, int64_t count) {
  const Tag<T> d;
  const auto zero = hn::Zero(d);
  // Four sums of x * 0 hide the latency of the multiply-add.
  auto sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero;
  int64_t i = 0;
  for (; i + 4 * kLanes<T> <= count; i += 4 * kLanes<T>) {
    sum0 = hn::MulAdd(hn::LoadU(d, x + i), zero, sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, x + i + kLanes<T>), zero, sum1);
    sum2 = hn::MulAdd(hn::LoadU(d, x + i + 2 * kLanes<T>), zero, sum2);
    sum3 = hn::MulAdd(hn::LoadU(d, x + i + 3 * kLanes<T>), zero, sum3);
  }
  for (; i < count; i += kLanes<T>) sum0 = hn::MulAdd(hn::LoadU(d, x + i), zero, sum0);
  return hn::AllTrue(d, hn::Eq(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)), zero));
}

// to[0, n) = value. `To` may be a 16-bit type.
template <typename T, typename To>
HWY_INLINE void FillRow(To* to, int64_t n, T value) {
  const Tag<T> d;
  const auto all = hn::Set(d, value);
  ForEachVector(d, n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(all, d, to + i); });
}

// to[0, n) = from[0, n) * factor. From and To may be 16-bit types.
template <typename From, typename T, typename To>
HWY_INLINE void ScaleRow(const From* from, int64_t n, T factor, To* to) {
  const Tag<T> d;
  const auto scale = hn::Set(d, factor);
  ForEachVector(
      d, n, [&](auto lanes, int64_t i) HWY_ATTR { lanes.Store(hn::Mul(lanes.Load(d, from + i), scale), d, to + i); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
