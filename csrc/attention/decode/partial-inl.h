// Split-KV: the partial result of one chunk of keys, between the chunk kernel (kernel-inl.h) and the combine
// (combine-inl.h).

#if defined(HEADWISE_ATTENTION_DECODE_PARTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_PARTIAL_INL_H_
#undef HEADWISE_ATTENTION_DECODE_PARTIAL_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_PARTIAL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "base/scratch.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
struct Partial {
  template <typename S>
  Partial(Arena& arena, const AttentionArgs<S>& args, int64_t chunk_keys)
      : rows(args.query.shape[1] / args.key.shape[1] * args.query.shape[2]),
        value_width(PackedColumns<T>(args.value.shape[3])),
        keys(args.weights ? chunk_keys : 0),
        max(arena.Allocate<T>(rows)),
        sum(arena.Allocate<T>(rows)),
        output(arena.Allocate<T>(rows, value_width)),
        scores(arena.Allocate<T>(rows, keys)) {}

  int64_t rows, value_width, keys;
  T* max;     // [rows]
  T* sum;     // [rows] of exp(score - max)
  T* output;  // [rows][value_width], not divided by the sum
  T* scores;  // [rows][keys], if weights are requested
};

template <typename S>
std::size_t PartialBytes(const AttentionArgs<S>& args, int64_t chunk_keys) {
  Arena measure(nullptr);
  const Partial<Accumulator<S>> partial(measure, args, chunk_keys);
  return measure.used();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
