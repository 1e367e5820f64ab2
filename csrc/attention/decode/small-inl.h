// Decode of heads with few keys: up to kSmallKeys, without weights and without other score modifiers than a window. The
// general kernel (kernel-inl.h) takes over 100 ns for a head apart from its products: scratch memory is laid out, masks
// are looked at, a partial result is stored and combined. Here all of that is done once for many heads, and a head's
// scores and weights stay in registers and L1. A head of one query, one key and head_dim 8 takes about 24 ns.
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
#include "attention/decode/dots-inl.h"
#include "attention/decode/kernel-inl.h"
#include "attention/kernel.h"
#include "attention/softmax-inl.h"
#include "attention/stored_rows-inl.h"
#include "base/interruption.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// What the heads of a call share, and a step of them at work: as many as have kMaxDecodeRows rows together. First the
// scores of all of them are stored, then they become weights, then outputs: stored numbers have reached L1 by the time
// they are loaded as vectors, and the chains of dependent instructions of several heads overlap.
template <typename S>
struct SmallHeads {
  using T = Accumulator<S>;

  explicit SmallHeads(const AttentionArgs<S>& arguments)
      : args(arguments),
        keys(args.key.shape[2]),
        group(args.query.shape[1] / args.key.shape[1]),
        rows(group * args.query.shape[2]),
        query_width(PackedColumns<T>(args.query.shape[3])) {
    std::fill_n(sum, kSumWidth, T{1});
    for (int64_t r = 0; r < rows; ++r) {
      row[r] = MakeRow(args, r / args.query.shape[2], r % args.query.shape[2]);
      for (int64_t j = 0; j < kSmallKeys; ++j) keep[r][j] = row[r].low <= j && j < row[r].high ? T{1} : T{0};
    }
  }

  static constexpr int64_t kSumWidth = std::max<int64_t>(kMaxDecodeRows, kLanes<T>);

  const AttentionArgs<S>& args;
  const int64_t keys, group, rows, query_width;  // rows: of a head
  Row row[kMaxDecodeRows];                       // of each head; Row::head counts from the first head of the group
  HWY_ALIGN T keep[kMaxDecodeRows][kSmallKeys];
  // Of the step's heads, one behind the other:
  HWY_ALIGN T query[kMaxDecodeRows * kSmallWidth];  // [rows][query_width], times the scale, zero beyond head_dim
  HWY_ALIGN T scores[kMaxDecodeRows][kSmallKeys];   // then weights
  T max[kMaxDecodeRows];
  HWY_ALIGN T sum[kSumWidth];  // whole vectors
  HWY_ALIGN T normaliser[kSumWidth];
};

// scores[first + r] of the rows r of a head.
template <typename S>
HWY_INLINE void SmallScores(SmallHeads<S>& heads, int64_t batch, int64_t kv_head, int64_t first) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const auto& args = heads.args;
  const auto scale = hn::Set(d, static_cast<T>(args.spec.scale));
  const int64_t head_dim = args.key.shape[3], width = heads.query_width;
  const StoredRows<S> key(args.key, batch, kv_head);
  T* query = heads.query + first * width;
  for (int64_t r = 0; r < heads.rows; ++r) {
    const S* from = args.query.at(batch, kv_head * heads.group + heads.row[r].head, heads.row[r].query);
    ForEachVector(d, head_dim, [&](auto lanes, int64_t i) HWY_ATTR {
      hn::Store(lanes.Or(d, hn::Mul(lanes.Load(d, from + i), scale), hn::Zero(d)), d, query + r * width + i);
    });
  }
  ForRowGroups(heads.rows, [&](int64_t r, auto rows) HWY_ATTR {
    T* scores = heads.scores[first + r];
    int64_t j = 0;
    for (; j + kDecodeKeys <= heads.keys; j += kDecodeKeys) {
      Dots<rows.value, kDecodeKeys, kSmallKeys>(query + r * width, width, key, j, head_dim, scores + j);
    }
    for (; j < heads.keys; ++j) {
      Dots<rows.value, 1, kSmallKeys>(query + r * width, width, key, j, head_dim, scores + j);
    }
  });
}

// The scores become weights exp(score - max). `r`: of the step; `keep`: of its row.
template <typename S, typename T = Accumulator<S>>
HWY_INLINE void SmallSoftmax(SmallHeads<S>& heads, int64_t r, const T* keep) {
  const Tag<T> d;
  const auto lowest = hn::Set(d, kMinusInf<T>);
  constexpr int kVectors = static_cast<int>(kSmallKeys / kLanes<T>);
  T* scores = heads.scores[r];
  auto lane_max = lowest;
  for (int64_t j = 0; j < heads.keys; j += kLanes<T>) {
    const auto kept = hn::Ne(hn::Load(d, keep + j), hn::Zero(d));
    const auto score = hn::IfThenElse(kept, hn::Load(d, scores + j), lowest);
    hn::Store(score, d, scores + j);
    lane_max = hn::Max(lane_max, score);
  }
  const T max = MaxLane(d, lane_max);
  heads.max[r] = max;
  const auto shift = hn::Set(d, max == kMinusInf<T> ? T{0} : max);
  auto even = hn::Zero(d), odd = hn::Zero(d);  // as in Exponentials
  for (int64_t j = 0; j < heads.keys; j += kLanes<T>) {
    const auto weight = AttentionExp(d, hn::Sub(hn::Load(d, scores + j), shift));
    hn::Store(weight, d, scores + j);
    if (kVectors > 1 && j / kLanes<T> % 2) {
      odd = hn::Add(odd, weight);
    } else {
      even = hn::Add(even, weight);
    }
  }
  heads.sum[r] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

// Outputs and lse of a head whose first row in the step is `first`. Returns whether the sums of values are finite.
template <typename S>
HWY_INLINE bool SmallOutputs(const SmallHeads<S>& heads, int64_t batch, int64_t kv_head, int64_t first) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const auto& args = heads.args;
  const int64_t stride = args.value.stride[2], first_head = kv_head * heads.group;
  const S* value = args.value.at(batch, kv_head);
  auto zero = hn::Zero(d);  // NaN once a sum is not finite
  ForRowGroups(heads.rows, [&](int64_t r, auto rows) HWY_ATTR {
    constexpr int kRows = rows.value;
    const T(*weights)[kSmallKeys] = heads.scores + first + r;
    ForEachVector(d, args.value.shape[3], [&](auto lanes, int64_t column) HWY_ATTR {
      hn::Vec<Tag<T>> sum[kRows];
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sum[i] = hn::Zero(d);
      for (int64_t j = 0; j < heads.keys; ++j) {
        const auto v = lanes.Load(d, value + j * stride + column);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) sum[i] = hn::MulAdd(hn::Set(d, weights[i][j]), v, sum[i]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Row& row = heads.row[r + i];
        zero = hn::MulAdd(sum[i], hn::Zero(d), zero);
        lanes.Store(hn::Mul(sum[i], hn::Set(d, heads.normaliser[first + r + i])), d,
                    args.output.at(batch, first_head + row.head, row.query) + column);
      }
    });
  });
  for (int64_t r = 0; args.lse && r < heads.rows; ++r) {
    const Row& row = heads.row[r];
    *args.lse.at(batch, first_head + row.head, row.query) = LogSumExp(heads.max[first + r], heads.sum[first + r]);
  }
  return hn::AllTrue(d, hn::Eq(zero, hn::Zero(d)));
}

// Key and value heads [begin, end) of all batch entries.
template <typename S>
void RunSmallHeads(const AttentionArgs<S>& args, int64_t begin, int64_t end, std::byte* scratch) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const int64_t kv_heads = args.key.shape[1], keys = args.key.shape[2];
  SmallHeads<S> heads(args);
  const int64_t step = kMaxDecodeRows / heads.rows;
  int64_t batch[kMaxDecodeRows], kv_head[kMaxDecodeRows];
  int64_t next_batch = begin / kv_heads, next_head = begin % kv_heads;
  for (; begin < end; begin += step) {
    const int64_t count = std::min(step, end - begin);
    for (int64_t h = 0; h < count; ++h) {
      batch[h] = next_batch, kv_head[h] = next_head;
      if (++next_head == kv_heads) next_head = 0, ++next_batch;
      SmallScores(heads, batch[h], kv_head[h], h * heads.rows);
    }
    for (int64_t h = 0, r = 0; h < count; ++h) {
      for (int64_t i = 0; i < heads.rows; ++i) SmallSoftmax(heads, r++, heads.keep[i]);
    }
    for (int64_t r = 0; r < kMaxDecodeRows; r += kLanes<T>) {
      const auto sum = hn::Load(d, heads.sum + r), one = hn::Set(d, T{1});
      hn::Store(hn::IfThenElse(hn::Eq(sum, hn::Zero(d)), one, hn::Div(one, sum)), d, heads.normaliser + r);
    }
    for (int64_t h = 0; h < count; ++h) {
      if (HWY_LIKELY(SmallOutputs(heads, batch[h], kv_head[h], h * heads.rows))) continue;
      DecodeChunkKernel(args, {batch[h], kv_head[h], 0, keys}, scratch, scratch + PartialBytes(args, keys));
      CombineChunks(args, batch[h], kv_head[h], keys, scratch);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
