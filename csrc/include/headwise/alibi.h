// ALiBi, attention with linear biases (Press, Smith and Lewis 2021, arXiv:2108.12409, section 3).
#pragma once

#include <cstdint>

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// out[n, h, i, j] = scores[n, h, i, j] - slopes[h] * |i + offset - j|
//
// scores, out: (batch, heads, query_len, key_len), last axis contiguous; `out` may be `scores`. slopes: (heads,).
// offset: position of query 0 among the keys. T is float, double, Float16 or BFloat16; 16-bit scores are computed in
// float and rounded once.
template <typename T>
void AddAlibi(View<const T, 4> scores, const Accumulator<T>* slopes, std::int64_t offset, View<T, 4> out);

}  // namespace headwise
