// The interface between the scheduler (backward.cc) and the kernels of each target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/attention.h"

namespace headwise {

// Keys and queries of a block: its probabilities and their gradients are products of two such blocks.
template <typename T>
constexpr std::int64_t kBackwardKeys = 384 / static_cast<std::int64_t>(sizeof(Accumulator<T>));
constexpr std::int64_t kBackwardQueries = 96;

// Keys [key_begin, key_end) of one key and value head, with all queries of the heads that share it. key_begin is a
// multiple of kBackwardKeys.
struct BackwardChunk {
  std::int64_t batch, kv_head, key_begin, key_end;
};

// Where a chunk leaves its part of a bias gradient: an array of the gradient's shape that it adds to, the gradient
// itself where no other task adds to it; or, if no axis is summed and every key belongs to a chunk, writes, zeros
// included.
template <typename T>
struct BiasPartial {
  View<Accumulator<T>, 4> array;
  bool stored = false;
};

// Where a chunk leaves what several chunks contribute to. Sums of `d_query` over the chunks of a head come from
// AttentionBackwardKernel::finish_query.
template <typename T>
struct BackwardPartials {
  // [group][d_query rows][d_query width]; of a row, only if the chunk meets it (KeysOf).
  Accumulator<T>* d_query = nullptr;
  const BiasPartial<T>* d_bias = nullptr;   // one for each gradient of a bias
  double* d_alibi_slopes = nullptr;         // of the heads of the group: one number each, written
  double* d_sinks = nullptr;                // likewise; null for all chunks of a head but one
  View<Accumulator<T>, 4> d_relative_bias;  // of the gradient's shape; the chunk adds to it
};

template <typename T>
struct AttentionBackwardKernel {
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients);
  // Elements of BackwardPartials::d_query.
  std::int64_t (*d_query_size)(const AttentionArgs<T>& args);
  // Writes d_key and d_value, and the chunk's part of the other gradients. `args` may have fewer keys than the
  // gradients (key_lengths), and `entry` is then the batch entry in the gradients.
  void (*chunk)(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients, const BackwardChunk& chunk,
                std::int64_t entry, const BackwardPartials<T>& partials, std::byte* scratch);
  // Writes d_query of queries [begin, end) of the group's heads, whole blocks: the sum of the partials of `chunks`
  // chunks of chunk_keys keys, which are contiguous in memory and overwritten.
  void (*finish_query)(const AttentionArgs<T>& args, const View<T, 4>& d_query, std::int64_t entry,
                       std::int64_t kv_head, std::int64_t begin, std::int64_t end, std::int64_t chunks,
                       std::int64_t chunk_keys, Accumulator<T>* partials);
};

// For the current target.
const KernelSet<AttentionBackwardKernel>& ChosenAttentionBackwardKernels();

}  // namespace headwise
