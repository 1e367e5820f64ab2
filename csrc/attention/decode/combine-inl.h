// Split-KV combine: the result of one key and value head's queries from the partial results of its chunks of keys, in
// order of the keys:
//   m = max of m_c,  output = sum_c exp(m_c - m) output_c / sum_c exp(m_c - m) sum_c.

#if defined(HEADWISE_ATTENTION_DECODE_COMBINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_COMBINE_INL_H_
#undef HEADWISE_ATTENTION_DECODE_COMBINE_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_COMBINE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/decode/partial-inl.h"
#include "attention/divide_first-inl.h"
#include "attention/softmax-inl.h"
#include "base/scratch.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S>
void CombineChunks(const AttentionArgs<S>& args, int64_t batch, int64_t kv_head, int64_t chunk_keys,
                   std::byte* partials) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const int64_t queries = args.query.shape[2], value_dim = args.value.shape[3], key_len = args.key.shape[2];
  const int64_t group = args.query.shape[1] / args.key.shape[1];
  const int64_t chunks = std::max<int64_t>(1, (key_len + chunk_keys - 1) / chunk_keys);
  const std::size_t bytes = PartialBytes(args, chunk_keys);
  const auto chunk = [&](int64_t c) {
    Arena arena(partials + bytes * static_cast<std::size_t>(c));
    return Partial<T>(arena, args, std::min(chunk_keys, key_len - c * chunk_keys));
  };
  const Partial<T> total = chunk(0);
  const KeyRange keys = KeysOf(args, batch, 0, queries);
  for (int64_t r = 0; r < total.rows; ++r) {
    const int64_t head = kv_head * group + r / queries, query = r % queries;
    const T sink = args.spec.sinks ? args.spec.sinks[head] : kMinusInf<T>;
    T max = sink;
    for (int64_t c = 0; c < chunks; ++c) max = std::max(max, chunk(c).max[r]);
    const T shift = max == kMinusInf<T> ? T{0} : max;
    const auto factor_of = [&](T partial_max) HWY_ATTR {
      return partial_max == shift ? T{1} : hn::GetLane(AttentionExp(d, hn::Set(d, partial_max - shift)));
    };
    T sum = sink == shift ? SinkTerm(sink) : factor_of(sink);
    T* output = total.output + r * total.value_width;
    for (int64_t c = 0; c < chunks; ++c) {
      const Partial<T> partial = chunk(c);
      const T factor = factor_of(partial.max[r]);
      sum += partial.sum[r] * factor;
      const T* from = partial.output + r * total.value_width;
      for (int64_t i = 0; i < total.value_width; i += kLanes<T>) {
        const auto before = c == 0 ? hn::Zero(d) : hn::Load(d, output + i);
        hn::Store(hn::MulAdd(hn::Load(d, from + i), hn::Set(d, factor), before), d, output + i);
      }
    }
    const T normaliser = Normaliser(sum);
    const bool divided = HWY_UNLIKELY(!AllFinite(output, total.value_width)) &&
                         DivideFirst(args, batch, MakeRow(args, head, query), max, output);
    ScaleRow(output, value_dim, divided ? T{1} : normaliser, args.output.at(batch, head, query));
    if (args.lse) *args.lse.at(batch, head, query) = LogSumExp(max, sum);
    if (args.weights) {
      S* weights = args.weights.at(batch, head, query);
      const T zero = T{0} * normaliser;  // NaN if the row is NaN
      FillRow(weights, keys.begin, zero);
      for (int64_t c = keys.begin / chunk_keys; c * chunk_keys < keys.end; ++c) {
        const Partial<T> partial = chunk(c);
        const int64_t first = c * chunk_keys;
        const int64_t from = std::max(keys.begin - first, int64_t{0}), to = std::min(keys.end - first, partial.keys);
        T* scores = partial.scores + r * partial.keys;
        Exponentials(scores, from, to, shift);
        ScaleRow(scores + from, to - from, normaliser, weights + first + from);
      }
      FillRow(weights + keys.end, key_len - keys.end, zero);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
