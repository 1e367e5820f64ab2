// Statistics of weights (headwise/attention_statistics.h) from the weights of a block of queries, which the kernel
// keeps in scratch memory until their rows have met all keys (kernel-inl.h). Called by FinishStatistics.
//
// A key block of a row is one short sweep, in L1, per statistic: its weights become final, with their max and the sums
// of the keys; -w log(w); the largest weights. Cost: about 25 vector operations per vector of weights, most of them of
// the logarithm, which is Highway's. From the logarithm of a weight, and not from its score, the entropy has no
// cancellation.
//
// Sums over queries are kept in the accumulator type for rows that follow each other in a block of queries. Those of
// key_mass continue in double beyond it, those of block_mass in their result.

#if defined(HEADWISE_ATTENTION_STATISTICS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_STATISTICS_INL_H_
#undef HEADWISE_ATTENTION_STATISTICS_INL_H_
#else
#define HEADWISE_ATTENTION_STATISTICS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/kernel.h"
#include "attention/softmax-inl.h"
#include "attention/statistics/top_keys.h"
#include "base/scratch.h"
#include "headwise/attention_statistics.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Zero-size without statistics.
template <typename T>
struct StatisticsScratch {
  StatisticsScratch(Arena& arena, const WeightStatistics<T>* statistics, int64_t key_len)
      : columns(arena.Allocate<T>(statistics ? key_len : 0)),
        top(arena.Allocate<WeightOfKey<T>>(statistics ? statistics->top_weights.shape[3] : 0, 2)) {}

  T* columns;  // [key_len]
  WeightOfKey<T>* top;
};

// weights[0, n) *= factor; adds them to `columns`, if there are any, and returns their max.
template <typename T>
HWY_NOINLINE T FinishWeightsOf(T* weights, int64_t n, T factor, T* columns) {
  const Tag<T> d;
  const auto scale = hn::Set(d, factor);
  auto max = hn::Zero(d);
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR {
    const auto weight = hn::Mul(lanes.Load(d, weights + j), scale);
    lanes.Store(weight, d, weights + j);
    max = hn::Max(max, weight);
    if (columns) lanes.Store(hn::Add(lanes.Load(d, columns + j), weight), d, columns + j);
  });
  return MaxLane(d, max);
}

// -sum of w log(w).
template <typename T>
HWY_NOINLINE T Entropy(const T* weights, int64_t n) {
  const Tag<T> d;
  const auto tiny = hn::Set(d, std::numeric_limits<T>::min());
  auto sum = hn::Zero(d);
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR {
    const auto weight = lanes.Load(d, weights + j);
    sum = hn::NegMulAdd(weight, hn::Log(d, hn::Max(weight, tiny)), sum);
  });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Adds the weights of keys from `key` on that exceed the threshold.
template <typename T>
HWY_NOINLINE void AddTopKeys(const T* weights, int64_t n, int64_t key, TopKeys<T>& top) {
  const Tag<T> d;
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR {
    const auto larger = hn::Gt(lanes.Load(d, weights + j), hn::Set(d, top.threshold()));
    if (HWY_LIKELY(hn::AllFalse(d, larger))) return;
    std::uint8_t bytes[8] = {};
    hn::StoreMaskBits(d, larger, bytes);
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= std::uint64_t{bytes[i]} << (8 * i);
    for (; bits != 0; bits &= bits - 1) {
      const int64_t i = j + static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(bits));
      if (weights[i] > top.threshold()) top.Add(weights[i], key + i);
    }
  });
}

template <typename T>
HWY_NOINLINE double SumOf(const T* x, int64_t n) {
  const Tag<T> d;
  auto sum = hn::Zero(d);
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR { sum = hn::Add(sum, lanes.Load(d, x + j)); });
  return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
}

// The rows of a block of queries, one after the other: heads of the group, and their queries in order.
template <typename T>
class RowStatistics {
 public:
  RowStatistics(const WeightStatistics<T>& statistics, const StatisticsScratch<T>& scratch, const AttentionBlock& block,
                const KeyRange& keys, int64_t key_len, int64_t group)
      : statistics_(statistics), scratch_(scratch), block_(block), keys_(keys), key_len_(key_len), group_(group) {
    if (statistics.key_mass || statistics.block_mass) columns_ = scratch.columns;
    if (columns_) std::fill_n(columns_, key_len_, T{0});
  }

  // weights[j]: those of key j of the range, to be multiplied by the factor of their key block, of block_keys keys. A
  // key block of factor 0 has no weights, whatever is in its memory. `normaliser` is NaN if the row is.
  HWY_NOINLINE void Add(const Row& row, T* weights, const T* factors, int64_t block_keys, T normaliser) {
    if (row.head != head_ || row.query / statistics_.query_size != query_block_) AddColumns();
    head_ = row.head, query_block_ = row.query / statistics_.query_size;
    if (normaliser != normaliser) return AddNaN(row, normaliser);
    TopKeys<T> top(statistics_.top_weights.shape[3], scratch_.top);
    T max{0};
    double entropy = 0;
    ForKeyBlocks(block_keys, keys_, [&](int64_t begin, int64_t end) HWY_ATTR {
      const T factor = *factors++;
      if (factor == T{0}) return;
      const int64_t n = end - begin;
      const T block_max = FinishWeightsOf(weights + begin, n, factor, columns_ ? columns_ + begin : nullptr);
      max = std::max(max, block_max);
      if (statistics_.entropy) entropy += static_cast<double>(Entropy(weights + begin, n));
      if (statistics_.top_weights && block_max > top.threshold()) AddTopKeys(weights + begin, n, begin, top);
    });
    // Rounded weights may exceed 1.
    Store(row, max, static_cast<T>(std::max(0.0, entropy)));
    if (!statistics_.top_weights) return;
    top.Finish(statistics_.top_weights.at(block_.batch, row.head, row.query),
               statistics_.top_keys.at(block_.batch, row.head, row.query));
  }

  // The sums of the keys of the rows since the last call, which belong to one head and one block of queries.
  HWY_NOINLINE void AddColumns() {
    if (!columns_ || head_ < 0) return;
    const int64_t from = all_keys_ ? 0 : keys_.begin, to = all_keys_ ? key_len_ : keys_.end;
    all_keys_ = false;
    if (statistics_.key_mass) {
      double* mass = block_.key_mass + (head_ - block_.kv_head * group_) * key_len_;
      for (int64_t j = from; j < to; ++j) mass[j] += static_cast<double>(columns_[j]);
    }
    if (statistics_.block_mass) {
      T* mass = statistics_.block_mass.at(block_.batch, head_, query_block_);
      const int64_t size = statistics_.key_size;
      ForKeyBlocks(size, {from, to}, [&](int64_t begin, int64_t end) HWY_ATTR {
        T& sum = mass[begin / size];
        sum = static_cast<T>(static_cast<double>(sum) + SumOf(columns_ + begin, end - begin));
      });
    }
    if (from < to) std::fill_n(columns_ + from, to - from, T{0});
  }

 private:
  void Store(const Row& row, T max, T entropy) const {
    if (statistics_.max_weight) *statistics_.max_weight.at(block_.batch, row.head, row.query) = max;
    if (statistics_.entropy) *statistics_.entropy.at(block_.batch, row.head, row.query) = entropy;
  }

  // All weights are NaN.
  HWY_NOINLINE void AddNaN(const Row& row, T nan) {
    Store(row, nan, nan);
    if (columns_) std::fill_n(columns_, key_len_, nan);
    all_keys_ = true;
    if (!statistics_.top_weights) return;
    for (int64_t i = 0; i < statistics_.top_weights.shape[3]; ++i) {
      *statistics_.top_weights.at(block_.batch, row.head, row.query, i) = i < key_len_ ? nan : T{0};
      *statistics_.top_keys.at(block_.batch, row.head, row.query, i) = i;
    }
  }

  const WeightStatistics<T>& statistics_;
  const StatisticsScratch<T>& scratch_;
  const AttentionBlock& block_;
  const KeyRange keys_;
  const int64_t key_len_, group_;
  T* columns_ = nullptr;                 // [key_len] sums of the weights of rows
  bool all_keys_ = false;                // whether keys outside of the range have sums
  int64_t head_ = -1, query_block_ = 0;  // of these rows
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
