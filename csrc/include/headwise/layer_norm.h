// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450, eqs. 3 and 4).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[r, i] = gamma[i] * (x[r, i] - mean_r) / sqrt(var_r + eps) + beta[i], the biased variance, in two passes.
// Last axes contiguous; gamma, beta: (n,). `out` may be `x`. Halves are computed with as float and rounded once.
void LayerNorm(View<const Float16, 2> x, const Float16* gamma, const Float16* beta, double eps, View<Float16, 2> out);
void LayerNorm(View<const BFloat16, 2> x, const BFloat16* gamma, const BFloat16* beta, double eps,
               View<BFloat16, 2> out);
void LayerNorm(View<const float, 2> x, const float* gamma, const float* beta, double eps, View<float, 2> out);
void LayerNorm(View<const double, 2> x, const double* gamma, const double* beta, double eps, View<double, 2> out);

}  // namespace headwise
