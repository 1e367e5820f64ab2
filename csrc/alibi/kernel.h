// The functions that each target provides for ALiBi.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

template <typename T>
struct AlibiKernel {
  // out[j] = scores[j] - slope * |position - j| for j in [0, key_len); out may be scores.
  // `streamed`: with non-temporal stores, to be flushed by the caller (base/stream.h).
  void (*row)(const T* scores, Accumulator<T> slope, std::int64_t position, std::int64_t key_len, T* out,
              bool streamed);
};

// For the current target.
const KernelSet<AlibiKernel>& ChosenAlibiKernels();

}  // namespace headwise
