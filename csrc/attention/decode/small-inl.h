// Decode of heads with few keys: up to kSmallKeys, without weights and without other score modifiers than a window. The
// general kernel (kernel-inl.h) takes over 100 ns for a head apart from its products: scratch memory is laid out, masks
// are looked at, a partial result is stored and combined. Here all of that is done once for many heads, and a head's
// scores and weights stay in registers and L1. A head of one query, one key and head_dim 8 takes about 20 ns.
//
// Every sum has the order and the bits of the general kernel, which computes a head again if its results are not
// finite.

#if defined(HEADWISE_ATTENTION_DECODE_SMALL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_SMALL_INL_H_
#undef HEADWISE_ATTENTION_DECODE_SMALL_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_SMALL_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/decode/combine-inl.h"
#include "attention/decode/kernel-inl.h"
#include "attention/kernel.h"
#include "attention/softmax-inl.h"
#include "base/interruption.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// What the heads of a call share, and the numbers of the head at work.
template <typename S>
struct SmallHead {
  using T = Accumulator<S>;

  explicit SmallHead(const AttentionArgs<S>& arguments)
      : args(arguments),
        keys(args.key.shape[2]),
        queries(args.query.shape[2]),
        group(args.query.shape[1] / args.key.shape[1]),
        query_width(PackedColumns<T>(args.query.shape[3])) {
    for (int64_t r = 0; r < rows(); ++r) {
      row[r] = MakeRow(args, r / queries, r % queries);
      for (int64_t j = 0; j < kSmallKeys; ++j) keep[r][j] = row[r].low <= j && j < row[r].high ? T{1} : T{0};
    }
  }

  int64_t rows() const { return group * queries; }

  const AttentionArgs<S>& args;
  const int64_t keys, queries, group, query_width;
  Row row[kMaxDecodeRows];  // Row::head counts from the first head of the group
  HWY_ALIGN T keep[kMaxDecodeRows][kSmallKeys];
  HWY_ALIGN T query[kMaxDecodeRows * kSmallWidth];  // [rows][query_width], times the scale, zero beyond head_dim
  HWY_ALIGN T scores[kMaxDecodeRows][kSmallKeys];   // then weights
  T max[kMaxDecodeRows], sum[kMaxDecodeRows], normaliser[kMaxDecodeRows];
};

template <typename S, typename T = Accumulator<S>>
HWY_INLINE void LoadSmallQueries(SmallHead<S>& head, int64_t batch, int64_t first_head) {
  const Tag<T> d;
  const auto scale = hn::Set(d, static_cast<T>(head.args.spec.scale));
  for (int64_t r = 0; r < head.rows(); ++r) {
    const S* from = head.args.query.at(batch, first_head + head.row[r].head, head.row[r].query);
    T* to = head.query + r * head.query_width;
    ForEachVector(d, head.args.query.shape[3], [&](auto lanes, int64_t i) HWY_ATTR {
      hn::Store(lanes.Or(d, hn::Mul(lanes.Load(d, from + i), scale), hn::Zero(d)), d, to + i);
    });
  }
}

// Scores of row r become weights exp(score - max); their sum.
template <typename S, typename T = Accumulator<S>>
HWY_INLINE void SmallSoftmax(SmallHead<S>& head, int64_t r) {
  const Tag<T> d;
  const auto lowest = hn::Set(d, kMinusInf<T>);
  T* scores = head.scores[r];
  auto lane_max = lowest;
  for (int64_t j = 0; j < head.keys; j += kLanes<T>) {
    const auto kept = hn::Ne(hn::Load(d, head.keep[r] + j), hn::Zero(d));
    const auto score = hn::IfThenElse(kept, hn::Load(d, scores + j), lowest);
    hn::Store(score, d, scores + j);
    lane_max = hn::Max(lane_max, score);
  }
  const T max = MaxLane(d, lane_max), shift = max == kMinusInf<T> ? T{0} : max;
  auto even = hn::Zero(d), odd = hn::Zero(d);  // as in Exponentials
  for (int64_t j = 0; j < head.keys; j += kLanes<T>) {
    const auto weight = AttentionExp(d, hn::Sub(hn::Load(d, scores + j), hn::Set(d, shift)));
    hn::Store(weight, d, scores + j);
    (j / kLanes<T> % 2 ? odd : even) = hn::Add(j / kLanes<T> % 2 ? odd : even, weight);
  }
  head.max[r] = max;
  head.sum[r] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  head.normaliser[r] = Normaliser(head.sum[r]);
}

// Outputs of rows [r, r + kRows). Adds 0 for each finite sum of values, else NaN, to `zero`.
template <int kRows, typename S, typename T = Accumulator<S>>
HWY_INLINE void SmallOutputs(const SmallHead<S>& head, int64_t batch, int64_t kv_head, int64_t r,
                             hn::Vec<Tag<T>>& zero) {
  const Tag<T> d;
  const auto& args = head.args;
  const S* value = args.value.at(batch, kv_head);
  S* output[kRows];
  for (int i = 0; i < kRows; ++i) {
    output[i] = args.output.at(batch, kv_head * head.group + head.row[r + i].head, head.row[r + i].query);
  }
  ForEachVector(d, args.value.shape[3], [&](auto lanes, int64_t column) HWY_ATTR {
    hn::Vec<Tag<T>> sum[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) sum[i] = hn::Zero(d);
    for (int64_t j = 0; j < head.keys; ++j) {
      const auto v = lanes.Load(d, value + j * args.value.stride[2] + column);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum[i] = hn::MulAdd(hn::Set(d, head.scores[r + i][j]), v, sum[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      zero = hn::MulAdd(sum[i], hn::Zero(d), zero);
      lanes.Store(hn::Mul(sum[i], hn::Set(d, head.normaliser[r + i])), d, output[i] + column);
    }
  });
}

// Whether the results are finite.
template <typename S>
HWY_INLINE bool RunSmallHead(SmallHead<S>& head, int64_t batch, int64_t kv_head) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const auto& args = head.args;
  const int64_t stride = args.key.stride[2], rows = head.rows();
  const S* key = args.key.at(batch, kv_head);
  LoadSmallQueries(head, batch, kv_head * head.group);
  ForRowGroups(rows, [&](int64_t r, auto group) HWY_ATTR {
    const T* query = head.query + r * head.query_width;
    int64_t j = 0;
    for (; j + kDecodeKeys <= head.keys; j += kDecodeKeys) {
      Dots<group.value, kDecodeKeys, kSmallKeys>(query, head.query_width, key + j * stride, stride, args.key.shape[3],
                                                 head.scores[r] + j);
    }
    for (; j < head.keys; ++j) {
      Dots<group.value, 1, kSmallKeys>(query, head.query_width, key + j * stride, stride, args.key.shape[3],
                                       head.scores[r] + j);
    }
  });
  for (int64_t r = 0; r < rows; ++r) SmallSoftmax(head, r);
  auto zero = hn::Zero(d);
  ForRowGroups(rows, [&](int64_t r, auto group) HWY_ATTR { SmallOutputs<group.value>(head, batch, kv_head, r, zero); });
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(zero, hn::Zero(d))))) return false;
  for (int64_t r = 0; args.lse && r < rows; ++r) {
    *args.lse.at(batch, kv_head * head.group + head.row[r].head, head.row[r].query) =
        LogSumExp(head.max[r], head.sum[r]);
  }
  return true;
}

// Key and value heads [begin, end) of all batch entries.
template <typename S>
void RunSmallHeads(const AttentionArgs<S>& args, int64_t begin, int64_t end, std::byte* scratch) {
  const int64_t kv_heads = args.key.shape[1], keys = args.key.shape[2];
  SmallHead<S> head(args);
  int64_t batch = begin / kv_heads, kv_head = begin % kv_heads;
  for (; begin < end; ++begin) {
    if (!RunSmallHead(head, batch, kv_head)) {
      DecodeChunkKernel(args, {batch, kv_head, 0, keys}, scratch, scratch + PartialBytes(args, keys));
      CombineChunks(args, batch, kv_head, keys, scratch);
    }
    if (++kv_head == kv_heads) kv_head = 0, ++batch;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
