// Scratch memory of a task of the backward pass: one pass of keys and one block of queries.

#if defined(HEADWISE_ATTENTION_BACKWARD_SCRATCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_SCRATCH_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_SCRATCH_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_SCRATCH_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/backward/kernel.h"
#include "attention/backward/products-inl.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Keys of a pass: their packed rows and the sums of their gradients take about this many bytes, half of a usual L2.
template <typename T>
int64_t PassKeys(int64_t key_len, int64_t head_width, int64_t value_width) {
  constexpr int64_t kBytes = 512 * 1024, kKeys = kBackwardKeys<T>;
  const int64_t row = static_cast<int64_t>(sizeof(T)) * (3 * head_width + 2 * value_width);
  const int64_t keys = std::min(kBytes / std::max<int64_t>(1, row), key_len + kKeys - 1);
  return std::max<int64_t>(1, keys / kKeys) * kKeys;
}

constexpr int64_t kBackwardTiles = kBackwardQueries / kTileRows;

// Scratch of a task; T is the accumulator type.
template <typename T>
struct BackwardScratch {
  template <typename S>
  BackwardScratch(Arena& arena, const AttentionArgs<S>& args, const AttentionGradients<S>& gradients)
      : head_dim(args.query.shape[3]),
        value_dim(args.value.shape[3]),
        head_width(PackedColumns<T>(head_dim)),
        value_width(PackedColumns<T>(value_dim)),
        pass_keys(PassKeys<T>(args.key.shape[2], head_width, value_width)),
        key_columns(Allocate<T>(arena, pass_keys, head_dim)),
        key_rows(Allocate<T>(arena, pass_keys, head_width)),
        value_columns(Allocate<T>(arena, pass_keys, value_dim)),
        key_finite(Allocate<bool>(arena, pass_keys / kBackwardKeys<T>)),
        d_key(Allocate<T>(arena, pass_keys + kTileRows, head_width)),
        d_value(Allocate<T>(arena, pass_keys + kTileRows, value_width)),
        query_tiles(Allocate<T>(arena, kBackwardQueries, head_dim)),
        query_rows(Allocate<T>(arena, kBackwardQueries, head_width)),
        output_tiles(Allocate<T>(arena, kBackwardQueries, value_dim)),
        output_rows(Allocate<T>(arena, kBackwardQueries, value_width)),
        minus_lse(Allocate<T>(arena, kBackwardQueries)),
        delta(Allocate<T>(arena, kBackwardQueries)),
        p(Allocate<T>(arena, kBackwardQueries * kBackwardStride<T>)),
        ds(Allocate<T>(arena, kBackwardQueries * kBackwardStride<T>)),
        derivative(Allocate<T>(arena, args.spec.softcap > 0 ? kBackwardQueries * kBackwardStride<T> : 0)),
        wide(Allocate<T>(arena, kIs16Bit<S> ? kBackwardQueries : 0, std::max(head_dim, value_dim))),
        slopes(Allocate<double>(arena, gradients.d_alibi_slopes ? args.query.shape[1] / args.key.shape[1] : 0)) {}

  // Not inlined into the constructor, which is compiled for each type.
  template <typename U>
  static HWY_NOINLINE U* Allocate(Arena& arena, int64_t rows, int64_t width = 1) {
    return arena.Allocate<U>(rows, width);
  }

  int64_t head_dim, value_dim, head_width, value_width, pass_keys;
  // Of a pass, block by block.
  T* key_columns;    // panels [head_dim][panel]
  T* key_rows;       // panels [keys][panel]
  T* value_columns;  // panels [value_dim][panel]
  bool* key_finite;  // of each block
  T* d_key;          // [pass_keys][head_width], not yet multiplied by the scale
  T* d_value;        // [pass_keys][value_width]
  // Of a block of queries.
  T* query_tiles;                 // tiles [head_dim][height], multiplied by the scale
  T* query_rows;                  // panels [queries][panel]
  T *output_tiles, *output_rows;  // of d_output likewise
  T* minus_lse;
  T* delta;
  // Of a block pair, [queries][kBackwardStride].
  T* p;
  T* ds;
  T* derivative;   // of the softcap
  T* wide;         // [96][max width] staging buffer of widened rows
  double* slopes;  // [group] sums of dS * distance
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
