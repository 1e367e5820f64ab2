// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450, eqs. 3 and 4) and RMS normalisation (Zhang and
// Sennrich 2019, arXiv:1910.07467, eq. 4).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[r, i] = gamma[i] * (x[r, i] - mean_r) / sqrt(var_r + eps) + beta[i]
//
// var_r is the biased variance, computed in two passes: mean first, then squared deviations from it. x, out: (rows, n),
// last axis contiguous; `out` may be `x`. gamma, beta: (n,); null is 1 and 0. T is float, double, Float16 or BFloat16;
// 16-bit types are computed in float and rounded once.
template <typename T>
void LayerNorm(View<const T, 2> x, const T* gamma, const T* beta, double eps, View<T, 2> out);

// out[r, i] = gamma[i] * x[r, i] / sqrt(mean_r + eps)
//
// mean_r is the mean of the squares of row r; all else as above. A row of zeros with an eps of 0 gives NaN.
template <typename T>
void RmsNorm(View<const T, 2> x, const T* gamma, double eps, View<T, 2> out);

// The gradients of a loss, of which d_out is the gradient by `out`. d_out, d_x: like x; `d_x` may be `d_out` or `x`.
// d_gamma, d_beta: (n,). Sums over rows have a fixed order, so their bits do not depend on the number of threads.
template <typename T>
void LayerNormBackward(View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps, View<T, 2> d_x,
                       Accumulator<T>* d_gamma, Accumulator<T>* d_beta);
template <typename T>
void RmsNormBackward(View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps, View<T, 2> d_x,
                     Accumulator<T>* d_gamma);

}  // namespace headwise
