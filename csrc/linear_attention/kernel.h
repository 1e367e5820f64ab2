// The functions that each target provides for linear attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/linear_attention.h"

namespace headwise {

// Tokens of a chunk, whole tiles of rows on every target. Scores cost operations in proportion to it, and each chunk a
// reading of the state. Times of 24, 48 and 60 relative to 36 with AVX-512 and AVX2 (Zen 5), head_dim 64 to 256: linear
// rule 0.95 to 1.02, 0.99 to 1.01, 0.98 to 1.05; with a correction 0.89 to 1.01, 0.99 to 1.07, 1.01 to 1.15.
constexpr std::int64_t kMaxChunk = 36;

// Sequences up to this length are computed token by token, in the caller's states.
constexpr std::int64_t kTokenByToken = 3;

// Columns [begin, end) of the values of one key head, with the query heads that share it.
struct LinearAttentionTask {
  std::int64_t batch, kv_head, begin, end;
};

template <typename T>
struct LinearAttentionKernel {
  std::size_t (*scratch_bytes)(const LinearAttentionArgs<T>& args, std::int64_t columns);
  void (*run)(const LinearAttentionArgs<T>& args, const LinearAttentionTask& task, std::byte* scratch);
};

// For the current target.
const KernelSet<LinearAttentionKernel>& ChosenLinearAttentionKernels();

}  // namespace headwise
