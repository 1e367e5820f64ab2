// The functions that each target provides for activations.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/activation.h"
#include "headwise/dtype.h"

namespace headwise {

template <typename T>
struct ActivationKernel {
  // For i in [0, n); `up` may be null. `streamed`: with non-temporal stores, to be flushed by the caller
  // (base/stream.h).
  void (*forward)(Activation f, const T* x, const T* up, std::int64_t n, T* out, bool streamed);
  void (*backward)(Activation f, const T* d_out, const T* x, const T* up, std::int64_t n, T* d_x, T* d_up,
                   bool streamed);
};

// For the current target.
const KernelSet<ActivationKernel>& ChosenActivationKernels();

}  // namespace headwise
