// The tables of functions that each target provides for attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/attention.h"

namespace headwise {

// Queries [query_begin, query_end) of all heads that share one key and value head: heads * queries rows that meet the
// same keys.
struct AttentionBlock {
  std::int64_t batch, kv_head, query_begin, query_end;
};

// Keys [key_begin, key_end) of one key and value head, and all queries of the heads that share it. key_begin is a
// multiple of the 1 KB of a row that keys go by in.
struct DecodeChunk {
  std::int64_t batch, kv_head, key_begin, key_end;
};

// Many queries.
template <typename T>
struct AttentionKernel {
  // For a block of at most `rows` rows.
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args, std::int64_t rows);
  // Fills output, and weights and lse where asked for. A row's result does not depend on the block it is in.
  void (*block)(const AttentionArgs<T>& args, const AttentionBlock& block, std::byte* scratch);
};

// Few queries: `chunk` for all chunks of a head, each with a partial result of its own, side by side, then `merge`. All
// chunks but the last are of chunk_keys keys.
template <typename T>
struct DecodeKernel {
  std::size_t (*partial_bytes)(const AttentionArgs<T>& args, std::int64_t chunk_keys);
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args);
  void (*chunk)(const AttentionArgs<T>& args, const DecodeChunk& chunk, std::byte* partial, std::byte* scratch);
  void (*merge)(const AttentionArgs<T>& args, std::int64_t batch, std::int64_t kv_head, std::int64_t chunk_keys,
                std::byte* partials);
};

// In parts of bfloat16, on tiles (all but double) or by vectors (float and BFloat16, one part); null where this build
// has none. Few queries never go there: they wait for memory.
template <typename T>
const AttentionKernel<T>* AmxAttentionKernel();
template <typename T>
const AttentionKernel<T>* DotAttentionKernel();

// For the current target and these arguments: the kernel of the target's matmul backend, or that of FMA.
template <typename T>
const AttentionKernel<T>& GetAttentionKernel(const AttentionArgs<T>& args);

// For the current target, on FMA.
const KernelSet<AttentionKernel>& ChosenAttentionKernels();
const KernelSet<DecodeKernel>& ChosenDecodeKernels();

}  // namespace headwise
