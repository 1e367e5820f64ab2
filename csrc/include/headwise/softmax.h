// Softmax, log-softmax and log-sum-exp along the middle axis of (outer, n, inner).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// In all three, m = max_k x[o, k, p]; either `inner` is contiguous in input and output, or `inner` is 1 and axis 1 is
// contiguous. `out` may be `x`. T is float, double, Float16 or BFloat16; 16-bit types are computed in float and rounded
// once.

// out[o, i, p] = exp(x[o, i, p] - m) / sum_k exp(x[o, k, p] - m)
// As in the formula, a lane x[o, :, p] that holds NaN or +inf, or only -inf, becomes NaN.
template <typename T>
void Softmax(View<const T, 3> x, View<T, 3> out);

// out[o, i, p] = x[o, i, p] - m - log(sum_k exp(x[o, k, p] - m))
template <typename T>
void LogSoftmax(View<const T, 3> x, View<T, 3> out);

// out[o, p] = m + log(sum_k exp(x[o, k, p] - m))
// -inf for a lane of only -inf or of no elements, +inf for a lane with +inf and no NaN.
template <typename T>
void LogSumExp(View<const T, 3> x, View<T, 2> out);

}  // namespace headwise
