// The functions that each target provides for rotary embedding.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

// `count` rows of 2 * pairs elements with their cosines and sines; each array has its own row stride. `out` may be `x`.
template <typename T>
struct RopeRows {
  std::int64_t count;
  std::int64_t pairs;
  const T* x;
  std::int64_t x_stride;
  const Accumulator<T>* cos;
  std::int64_t cos_stride;
  const Accumulator<T>* sin;
  std::int64_t sin_stride;
  T* out;
  std::int64_t out_stride;
};

template <typename T>
struct RopeKernel {
  void (*halves)(const RopeRows<T>& rows);      // pairs (i, i + pairs)
  void (*neighbours)(const RopeRows<T>& rows);  // pairs (2 i, 2 i + 1)
  // Copies n elements with non-temporal stores, to be flushed by the caller (base/stream.h).
  void (*copy)(const T* from, std::int64_t n, T* to);
};

// For the current target.
const KernelSet<RopeKernel>& ChosenRopeKernels();

}  // namespace headwise
