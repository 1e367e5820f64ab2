// The table of functions that each target provides for attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "headwise/attention.h"

namespace headwise {

// Queries [query_begin, query_end) of all heads that share one key and value head: heads * queries rows that meet the
// same keys.
struct AttentionBlock {
  std::int64_t batch, kv_head, query_begin, query_end;
};

template <typename T>
struct AttentionKernel {
  // For a block of at most `rows` rows.
  std::size_t (*scratch_bytes)(const AttentionArgs<T>& args, std::int64_t rows);
  // Fills output, and weights and lse where asked for. A row's result does not depend on the block it is in.
  void (*block)(const AttentionArgs<T>& args, const AttentionBlock& block, std::byte* scratch);
};

// That of the chosen target.
template <typename T>
const AttentionKernel<T>& GetAttentionKernel();

}  // namespace headwise
