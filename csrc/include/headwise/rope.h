// Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): the rotation by given cosines and sines.
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// Rotates each pair (a, b) of the last axis to (a cos - b sin, a sin + b cos). Pairs are (i, i + dim / 2), or
// (2 i, 2 i + 1) when interleaved.
//
// x, out: (batch, heads, seq, dim); cos, sin: (batch, heads, seq, dim / 2), with stride 0 on broadcast axes. Last axes
// contiguous; `out` may be `x`. T is float, double, Float16 or BFloat16; 16-bit types are rotated in float and rounded
// once.
template <typename T>
void ApplyRope(View<const T, 4> x, View<const Accumulator<T>, 4> cos, View<const Accumulator<T>, 4> sin,
               bool interleaved, View<T, 4> out);

}  // namespace headwise
