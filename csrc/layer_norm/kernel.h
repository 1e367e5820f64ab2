// The functions that each target provides for layer and RMS normalisation.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

template <typename T>
struct LayerNormKernel {
  // out[i] = gamma[i] * (x[i] - mean) / sqrt(variance + eps) + beta[i] for i in [0, n); out may be x.
  // `streamed`: with non-temporal stores, to be flushed by the caller (base/stream.h). `next`: a row of n to prefetch.
  // gamma and beta may be null.
  using Row = void (*)(const T* x, const T* gamma, const T* beta, double eps, std::int64_t n, T* out, bool streamed,
                       const T* next);
  Row layer_norm;
  Row rms_norm;  // with a mean of 0, and the mean of squares for the variance

  // The gradient by x. Adds the gradients by gamma and beta to d_gamma and d_beta, of n; d_beta not of rms_norm.
  using Backward = void (*)(const T* d_out, const T* x, const T* gamma, double eps, std::int64_t n, T* d_x,
                            Accumulator<T>* d_gamma, Accumulator<T>* d_beta, bool streamed, const T* next,
                            const T* next_d_out);
  Backward layer_norm_backward;
  Backward rms_norm_backward;
};

// For the current target.
const KernelSet<LayerNormKernel>& ChosenLayerNormKernels();

}  // namespace headwise
