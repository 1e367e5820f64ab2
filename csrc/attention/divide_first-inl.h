// Outputs that overflowed, computed again. The kernels sum exp(score - max) * value and divide the sum last, which
// takes one division per row. With values near the largest number the sum may be infinite although the mean is not.
// Dividing the weights first keeps every partial sum below the largest value.
//
// Rare, hence written for size: one row and one key at a time, about ten times as slow as the kernels. A row costs the
// kernels one check of its output.

#if defined(HEADWISE_ATTENTION_DIVIDE_FIRST_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DIVIDE_FIRST_INL_H_
#undef HEADWISE_ATTENTION_DIVIDE_FIRST_INL_H_
#else
#define HEADWISE_ATTENTION_DIVIDE_FIRST_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <variant>

#include "attention/exp-inl.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "attention/stored_rows-inl.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A vector of row `row` of the keys or values of one head, from `column` on.
template <bool kValues, class Lanes, typename S, typename T = Accumulator<S>>
HWY_NOINLINE hn::Vec<Tag<T>> LoadKeys(const AttentionArgs<S>& args, Lanes lanes, int64_t batch, int64_t head,
                                      int64_t row, int64_t column) {
  const Tag<T> d;
  const auto load = [&](const auto& keys) HWY_ATTR {
    return lanes.Load(d, (kValues ? keys.value : keys.key).at(batch, head, row) + column);
  };
  if constexpr (std::is_same_v<S, float>) {
    if (const auto* keys = std::get_if<StoredKeys<Float16>>(&args.stored)) return load(*keys);
    if (const auto* keys = std::get_if<StoredKeys<BFloat16>>(&args.stored)) return load(*keys);
    if (const auto* keys = std::get_if<StoredKeys<std::int8_t>>(&args.stored)) {
      const auto& scale = kValues ? keys->value_scale : keys->key_scale;
      const StoredRows<std::int8_t> rows(kValues ? keys->value : keys->key, kValues ? keys->value_bits : keys->key_bits,
                                         batch, head);
      return hn::Mul(rows.Load(lanes, d, row, column), hn::Set(d, *scale.at(batch, head, row)));
    }
  }
  return load(args);
}

// The weights exp(score - max) of one row for the panel of keys that starts with `begin`; returns the number of keys.
template <typename T, typename S>
HWY_NOINLINE int64_t PanelWeights(const AttentionArgs<S>& args, int64_t batch, const Row& row, T max, int64_t begin,
                                  T* weights) {
  const Tag<T> d;
  const int64_t kv_head = row.head / (args.query.shape[1] / args.key.shape[1]);
  const S* query = args.query.at(batch, row.head, row.query);
  const auto scale = hn::Set(d, static_cast<T>(args.spec.scale));
  const int64_t keys = std::min<int64_t>(kPanel<T>, row.high - begin);
  for (int64_t j = 0; j < keys; ++j) {
    auto score = hn::Zero(d);
    ForEachVector(d, args.query.shape[3], [&](auto lanes, int64_t k) HWY_ATTR {
      const auto key = LoadKeys<false>(args, lanes, batch, kv_head, begin + j, k);
      score = hn::MulAdd(hn::Mul(lanes.Load(d, query + k), scale), key, score);
    });
    weights[j] = hn::GetLane(hn::SumOfLanes(d, score));
  }
  ModifyRow(args, batch, row, ModifiersOf(args.spec), begin, 0, keys, weights);
  Exponentials(weights, 0, keys, max);
  return keys;
}

// output[0, value_dim) of one row, finished, if it can be finite: if the row's scores are, and the values of all keys
// of weight other than 0. Returns whether output was written.
template <typename T, typename S>
HWY_NOINLINE bool DivideFirst(const AttentionArgs<S>& args, int64_t batch, const Row& row, T max, T* output) {
  if (std::is_same_v<S, Float16> || !std::isfinite(max)) return false;  // sums of float16 do not overflow
  const Tag<T> d;
  const int64_t value_dim = args.value.shape[3], kv_head = row.head / (args.query.shape[1] / args.key.shape[1]);
  double sum = args.spec.sinks ? std::exp(static_cast<double>(args.spec.sinks[row.head] - max)) : 0.0;
  HWY_ALIGN T weights[kPanel<T>];
  for (int64_t begin = row.low; begin < row.high; begin += kPanel<T>) {
    const int64_t keys = PanelWeights(args, batch, row, max, begin, weights);
    auto zero = hn::Zero(d);
    for (int64_t j = 0; j < keys; ++j) {
      if (weights[j] == T{0}) continue;
      sum += static_cast<double>(weights[j]);
      ForEachVector(d, value_dim, [&](auto lanes, int64_t i) HWY_ATTR {
        zero = hn::MulAdd(LoadKeys<true>(args, lanes, batch, kv_head, begin + j, i), hn::Zero(d), zero);
      });
    }
    if (!hn::AllTrue(d, hn::Eq(zero, hn::Zero(d)))) return false;
  }
  if (!std::isfinite(sum)) return false;

  // Half of each mean is computed, because rounding may carry the mean of the largest numbers beyond them. A panel has
  // a sum of its own, as rounding errors grow with the number of addends.
  std::fill_n(output, value_dim, T{0});
  const auto& dropout = args.spec.dropout_keep;
  const T factor = static_cast<T>((dropout ? args.spec.dropout_scale : 1.0) / (2 * sum));
  for (int64_t begin = row.low; begin < row.high; begin += kPanel<T>) {
    const int64_t keys = PanelWeights(args, batch, row, max, begin, weights);
    for (int64_t j = 0; j < keys; ++j) {
      weights[j] *= dropout && !*dropout.at(batch, row.head, row.query, begin + j) ? T{0} : factor;
    }
    ForEachVector(d, value_dim, [&](auto lanes, int64_t i) HWY_ATTR {
      auto panel = hn::Zero(d);
      for (int64_t j = 0; j < keys; ++j) {
        if (weights[j] == T{0}) continue;
        const auto value = LoadKeys<true>(args, lanes, batch, kv_head, begin + j, i);
        panel = hn::MulAdd(hn::Set(d, weights[j]), value, panel);
      }
      lanes.Store(hn::Add(lanes.Load(d, output + i), panel), d, output + i);
    });
  }
  const T limit = dropout ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max();
  for (int64_t i = 0; i < value_dim; ++i) output[i] = std::clamp(2 * output[i], -limit, limit);
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
