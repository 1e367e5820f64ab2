// Softmax and its logarithms along the middle axis of (outer, n, inner).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[o, i, p] = exp(x[o, i, p] - m) / sum_k exp(x[o, k, p] - m), m = max_k x[o, k, p].
// `inner` is contiguous in both, or 1; then axis 1 is contiguous. `out` may be `x`. A lane that holds NaN or +inf, or
// nothing but -inf, becomes NaN, as the formula gives. Here and in the other two, halves are computed with as float,
// and results rounded once.
void Softmax(View<const Float16, 3> x, View<Float16, 3> out);
void Softmax(View<const BFloat16, 3> x, View<BFloat16, 3> out);
void Softmax(View<const float, 3> x, View<float, 3> out);
void Softmax(View<const double, 3> x, View<double, 3> out);

// out[o, i, p] = x[o, i, p] - m - log(sum_k exp(x[o, k, p] - m)).
void LogSoftmax(View<const Float16, 3> x, View<Float16, 3> out);
void LogSoftmax(View<const BFloat16, 3> x, View<BFloat16, 3> out);
void LogSoftmax(View<const float, 3> x, View<float, 3> out);
void LogSoftmax(View<const double, 3> x, View<double, 3> out);

// out[o, p] = m + log(sum_k exp(x[o, k, p] - m)); -inf for a lane of -inf or of no elements, +inf for one with +inf.
void LogSumExp(View<const Float16, 3> x, View<Float16, 2> out);
void LogSumExp(View<const BFloat16, 3> x, View<BFloat16, 2> out);
void LogSumExp(View<const float, 3> x, View<float, 2> out);
void LogSumExp(View<const double, 3> x, View<double, 2> out);

}  // namespace headwise
