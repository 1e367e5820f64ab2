// The table of functions that each target provides for layer normalisation.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

template <typename T>
struct LayerNormKernel {
  // out[i] = gamma[i] * (x[i] - mean) / sqrt(variance + eps) + beta[i] for i in [0, n); out may be x.
  // `streamed`: past the caches, and stream.h has to end it. `next` is a row of n that will be read soon.
  void (*row)(const T* x, const T* gamma, const T* beta, double eps, std::int64_t n, T* out, bool streamed,
              const T* next);
};

// For the current target.
const KernelSet<LayerNormKernel>& ChosenLayerNormKernels();

}  // namespace headwise
