// The functions that each target provides for linear attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/linear_attention.h"

namespace headwise {

// Tokens of a chunk, whole tiles of rows on every target: its scores stay in the first-level cache.
constexpr std::int64_t kMaxChunk = 60;

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
