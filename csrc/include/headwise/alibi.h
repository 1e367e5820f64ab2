// Attention with linear biases (Press, Smith and Lewis 2021, arXiv:2108.12409, section 3).
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[n, h, i, j] = scores[n, h, i, j] - slopes[h] * |i + offset - j|. Last axes contiguous. `out` may be `scores`.
// Halves are computed with as float and rounded once.
void AddAlibi(View<const Float16, 4> scores, const float* slopes, std::int64_t offset, View<Float16, 4> out);
void AddAlibi(View<const BFloat16, 4> scores, const float* slopes, std::int64_t offset, View<BFloat16, 4> out);
void AddAlibi(View<const float, 4> scores, const float* slopes, std::int64_t offset, View<float, 4> out);
void AddAlibi(View<const double, 4> scores, const double* slopes, std::int64_t offset, View<double, 4> out);

}  // namespace headwise
