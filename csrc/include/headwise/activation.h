// Activation functions and their gated forms:
//
//   gelu(x) = x Phi(x)                       (Hendrycks and Gimpel 2016, arXiv:1606.08415)
//   gelu_tanh(x) = x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
//   silu(x) = x sigmoid(x)                   (Elfwing, Uchibe and Doya 2017, arXiv:1702.03118)
//   swiglu = silu(gate) up, geglu = gelu(gate) up    (Shazeer 2020, arXiv:2002.05202)
//
// Phi is the distribution function of the standard normal distribution. Results at infinity are the limits: f(inf) is
// inf, f(-inf) is -0, f'(inf) is 1, f'(-inf) is 0. NaN gives NaN.
#pragma once

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

enum class Activation { kGelu, kGeluTanh, kSilu };

// out = f(x), or f(x) up if `up` has data.
//
// x, up, out: (rows, n), last axis contiguous; `out` may be `x`. T is float, double, Float16 or BFloat16; 16-bit types
// are computed in float and rounded once.
template <typename T>
void Activate(Activation f, View<const T, 2> x, View<const T, 2> up, View<T, 2> out);

// d_x = d_out f'(x), or with `up`: d_x = d_out up f'(x), d_up = d_out f(x). Layouts as above; d_up without `up` is not
// written, and d_x may be d_out.
template <typename T>
void ActivateBackward(Activation f, View<const T, 2> d_out, View<const T, 2> x, View<const T, 2> up, View<T, 2> d_x,
                      View<T, 2> d_up);

}  // namespace headwise
