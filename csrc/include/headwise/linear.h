// The linear map x W + b.
#pragma once

#include <memory>

#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// out[r, n] = sum_k x[r, k] weight[k, n] + bias[n]
//
// x: (rows, depth) and out: (rows, columns), last axis contiguous; weight: (depth, columns), either axis contiguous;
// bias: (columns,) or null. X is float, double, Float16 or BFloat16, and W is the same type, or a 16-bit type under X
// = float: results have the bits of those of the weights widened to float. 16-bit types are summed in float, have a
// bias of float, and are rounded once. `precision` has no effect on double.
//
// Where bf16 products are used (precision.h), elements of the output that are not finite, or that overflow on the way,
// are recomputed in float32, so NaN and Inf are the same on every target. Numbers and products below 2^-126 count as 0,
// and numbers below 2^-102 lose their last bits: an error of at most
//   2^-123 sum_k (|x[r, k]| + |weight[k, n]| + 1).
// FMA targets handle subnormal numbers and do not have this error.
template <typename X, typename W>
void Linear(View<const X, 2> x, View<const W, 2> weight, const Accumulator<X>* bias, View<X, 2> out,
            Precision precision = Precision::kHighest);

// Linear with constant weights, which are packed once for the current target instead of at every call: 16-bit weights
// at the first call, others by the constructor. After a change of the target, the next call packs them for the new one.
// Results have the same bits as those of Linear, but for the sign and payload of NaN.
//
// weight and bias are not copied: both must stay alive and unchanged for the lifetime of the PackedLinear. Calls may
// run concurrently. Packed weights take as much memory as the weights; for float and Float16 on avx512_amx 1.5 and 3
// times as much at kHighest. On a bf16 backend, calls with a 16-bit x and with a float x pack 16-bit weights in two
// forms, and a float x of more than 16 rows widens them at each call.
template <typename T>
class PackedLinear {
 public:
  PackedLinear(View<const T, 2> weight, const Accumulator<T>* bias, Precision precision = Precision::kHighest);
  ~PackedLinear();
  PackedLinear(PackedLinear&&) noexcept;
  PackedLinear& operator=(PackedLinear&&) noexcept;

  // x: (rows, weight.shape[0]), out: (rows, weight.shape[1]). X is T, or float if T is a 16-bit type.
  template <typename X>
  void operator()(View<const X, 2> x, View<X, 2> out) const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace headwise
