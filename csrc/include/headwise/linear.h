// The linear map x W + b.
#pragma once

#include "headwise/tensor.h"

namespace headwise {

// out[r, n] = sum_k x[r, k] weight[k, n] + bias[n]. x and out have their last axis contiguous, weight either of its
// axes; bias: (n,) or null.
void Linear(View<const float, 2> x, View<const float, 2> weight, const float* bias, View<float, 2> out);
void Linear(View<const double, 2> x, View<const double, 2> weight, const double* bias, View<double, 2> out);

}  // namespace headwise
