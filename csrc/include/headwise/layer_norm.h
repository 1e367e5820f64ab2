// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450, eqs. 3 and 4).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[r, i] = gamma[i] * (x[r, i] - mean_r) / sqrt(var_r + eps) + beta[i]
//
// var_r is the biased variance, computed in two passes: mean first, then squared deviations from it. x, out: (rows, n),
// last axis contiguous; `out` may be `x`. gamma, beta: (n,). T is float, double, Float16 or BFloat16; 16-bit types are
// computed in float and rounded once.
template <typename T>
void LayerNorm(View<const T, 2> x, const T* gamma, const T* beta, double eps, View<T, 2> out);

}  // namespace headwise
