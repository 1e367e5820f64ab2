// The interface between the scheduler (attention.cc) and the kernels of each target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/attention.h"

namespace headwise {

// Up to this many rows per key and value head, packing keys and values costs more than it saves: decode.
constexpr std::int64_t kMaxDecodeRows = 8;

// Limits of decode/small-inl.h: keys, and head_dim and value_dim.
constexpr std::int64_t kSmallKeys = 16, kSmallWidth = 128;

// A task of AttentionKernel: queries [query_begin, query_end) of all heads that share one key and value head, that is
// group * queries rows that meet the same keys.
struct AttentionBlock {
  std::int64_t batch = 0, kv_head = 0, query_begin = 0, query_end = 0;
  double* key_mass = nullptr;  // [group][key_len]: sums to which AttentionArgs::statistics adds the weights of the keys
};

// A task of DecodeKernel: keys [key_begin, key_end) of one key and value head, and all queries of the heads that share
// it. key_begin is a multiple of the key block (1 KB per score row).
struct DecodeChunk {
  std::int64_t batch, kv_head, key_begin, key_end;
};

// Many queries.
template <typename T>
struct AttentionKernel {
  // For blocks of at most `rows` rows.
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args, std::int64_t rows);
  // Fills output, and weights and lse if requested. A row's result does not depend on its block.
  void (*block)(const AttentionArgs<T>& args, const AttentionBlock& block, std::byte* scratch);
};

// Few queries, split-KV: `chunk` for every chunk of a head's keys, each with its own partial result, contiguous in
// memory; then `combine`. Every chunk but the last has chunk_keys keys.
template <typename T>
struct DecodeKernel {
  std::size_t (*partial_bytes)(const AttentionArgs<T>& args, std::int64_t chunk_keys);
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args);
  void (*chunk)(const AttentionArgs<T>& args, const DecodeChunk& chunk, std::byte* partial, std::byte* scratch);
  void (*combine)(const AttentionArgs<T>& args, std::int64_t batch, std::int64_t kv_head, std::int64_t chunk_keys,
                  std::byte* partials);
  // All of the key and value heads [begin, end), counted over batch entries, of a call for which Schedule::small().
  // `scratch`: a partial result of all keys, then scratch_bytes. Null on instruction sets without decode/small-inl.h.
  void (*small_heads)(const AttentionArgs<T>& args, std::int64_t begin, std::int64_t end, std::byte* scratch);
};

// The kernels of the bf16 matmul backends; null if this build has none. AMX: every type but double; BF16 dot: float and
// BFloat16. Decode never uses them, because it is bound by memory.
template <typename T>
const AttentionKernel<T>* AmxAttentionKernel();
template <typename T>
const AttentionKernel<T>* DotAttentionKernel();

// For the current target, on FMA.
const KernelSet<AttentionKernel>& ChosenAttentionKernels();
const KernelSet<DecodeKernel>& ChosenDecodeKernels();

// For the current target and these arguments: the kernel of the target's matmul backend, or that of FMA.
template <typename T>
const AttentionKernel<T>& GetAttentionKernel(const AttentionArgs<T>& args);

}  // namespace headwise
