// d_query from the sums of the chunks of keys: each chunk has its own, of the blocks of queries that it meets, and they
// are added in the order of the chunks.

#if defined(HEADWISE_ATTENTION_BACKWARD_QUERY_GRADIENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_QUERY_GRADIENTS_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_QUERY_GRADIENTS_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_QUERY_GRADIENTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "attention/backward/kernel.h"
#include "attention/backward/products-inl.h"
#include "attention/modifiers/window-inl.h"
#include "attention/softmax-inl.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Whether windows let any of the queries [first, end) keep a key of [key_begin, key_end).
template <typename S>
bool MeetsChunk(const AttentionArgs<S>& args, int64_t first, int64_t end, int64_t key_begin, int64_t key_end) {
  const int64_t keys_end = std::min(key_end, args.key.shape[2]);
  return MakeRow(args, 0, first).low < keys_end && MakeRow(args, 0, end - 1).high > key_begin;
}

template <typename S>
int64_t QueryGradientSize(const AttentionArgs<S>& args) {
  const int64_t group = args.query.shape[1] / args.key.shape[1];
  return static_cast<int64_t>(
      Bytes(1, group, PaddedRows(args.query.shape[2]), PackedColumns<Accumulator<S>>(args.query.shape[3])));
}

template <typename S>
void FinishQueryGradients(const AttentionArgs<S>& args, const View<S, 4>& d_query, int64_t entry, int64_t kv_head,
                          int64_t begin, int64_t end, int64_t chunks, int64_t chunk_keys, Accumulator<S>* partials) {
  using T = Accumulator<S>;
  const int64_t group = args.query.shape[1] / args.key.shape[1], queries = args.query.shape[2];
  const int64_t width = args.query.shape[3], padded = PackedColumns<T>(width), size = QueryGradientSize(args);
  for (int64_t first = begin; first < end; first += kBackwardQueries) {
    // The chunks whose sums hold this block of queries.
    const int64_t last = std::min(queries, first + kBackwardQueries);
    const auto meets = [&](int64_t c) { return MeetsChunk(args, first, last, c * chunk_keys, (c + 1) * chunk_keys); };
    int64_t low = 0, high = chunks;
    while (low < high && !meets(low)) ++low;
    while (low < high && !meets(high - 1)) --high;
    for (int64_t member = 0; member < group; ++member) {
      for (int64_t i = first; i < last; ++i) {
        T* const row = partials + (member * PaddedRows(queries) + i) * padded;
        if (low == high) std::fill_n(row, padded, T{0});
        for (int64_t c = low + 1; c < high; ++c) AddRow(row + c * size, padded, row + low * size);
        ScaleRow(low < high ? row + low * size : row, width, static_cast<T>(args.spec.scale),
                 d_query.at(entry, kv_head * group + member, i));
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
