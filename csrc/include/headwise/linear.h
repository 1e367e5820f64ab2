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
// bias: (columns,) or null. T is float, double, Float16 or BFloat16. 16-bit types are summed in float, have a bias of
// float, and are rounded once. `precision` has no effect on double.
//
// Where bf16 products are used (precision.h), elements of the output that are not finite, or that overflow on the way,
// are recomputed in float32, so NaN and Inf are the same on every target. Numbers and products below 2^-126 count as 0,
// and numbers below 2^-102 lose their last bits: an error of at most
//   2^-123 sum_k (|x[r, k]| + |weight[k, n]| + 1).
// FMA targets handle subnormal numbers and do not have this error.
template <typename T>
void Linear(View<const T, 2> x, View<const T, 2> weight, const Accumulator<T>* bias, View<T, 2> out,
            Precision precision = Precision::kHighest);

// Linear with constant weights, which are packed once for the current target instead of at every call. After a change
// of the target, the next call packs them for the new one. Results have the same bits as those of Linear.
//
// weight and bias are not copied: both must stay alive and unchanged for the lifetime of the PackedLinear. Calls may
// run concurrently. Packed weights take as much memory as the weights in the accumulator type; 1.5 times as much on
// avx512_amx at kHighest.
template <typename T>
class PackedLinear {
 public:
  PackedLinear(View<const T, 2> weight, const Accumulator<T>* bias, Precision precision = Precision::kHighest);
  ~PackedLinear();
  PackedLinear(PackedLinear&&) noexcept;
  PackedLinear& operator=(PackedLinear&&) noexcept;

  // x: (rows, weight.shape[0]), out: (rows, weight.shape[1]).
  void operator()(View<const T, 2> x, View<T, 2> out) const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace headwise
