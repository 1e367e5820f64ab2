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

}  // namespace headwise
