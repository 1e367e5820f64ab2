// Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34): the rotation, given its cosines and sines.
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// Rotates each pair (a, b) of the last axis: (a cos - b sin, a sin + b cos). Pairs are (i, i + dim / 2), or
// (2 i, 2 i + 1) when interleaved. x, out: (batch, heads, seq, dim); cos, sin: (batch, heads, seq, dim / 2), stride 0
// where they are shared. Last axes contiguous. `out` may be `x`. Halves are rotated as float and rounded once.
void ApplyRope(View<const Float16, 4> x, View<const float, 4> cos, View<const float, 4> sin, bool interleaved,
               View<Float16, 4> out);
void ApplyRope(View<const BFloat16, 4> x, View<const float, 4> cos, View<const float, 4> sin, bool interleaved,
               View<BFloat16, 4> out);
void ApplyRope(View<const float, 4> x, View<const float, 4> cos, View<const float, 4> sin, bool interleaved,
               View<float, 4> out);
void ApplyRope(View<const double, 4> x, View<const double, 4> cos, View<const double, 4> sin, bool interleaved,
               View<double, 4> out);

}  // namespace headwise
