// The linear map x W + b.
#pragma once

#include <memory>

#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// out[r, n] = sum_k x[r, k] weight[k, n] + bias[n]. x and out have their last axis contiguous, weight either of its
// axes; bias: (n,) or null. `precision` is not of float64. Halves are summed up in float32, the bias is float32, and
// results are rounded once.
//
// In parts of bfloat16 (precision.h) what is not finite, or overflows on the way, is computed again in float32: NaN
// and Inf are those of the other targets. Numbers and products below 2^-126 count as 0, and the last bits of numbers
// below 2^-102 are lost: an error of up to 2^-123 sum_k (|x[r, k]| + |weight[k, n]| + 1) that the other targets, which
// know subnormal numbers, have not.
void Linear(View<const float, 2> x, View<const float, 2> weight, const float* bias, View<float, 2> out,
            Precision precision = Precision::kHighest);
void Linear(View<const double, 2> x, View<const double, 2> weight, const double* bias, View<double, 2> out,
            Precision precision = Precision::kHighest);
void Linear(View<const Float16, 2> x, View<const Float16, 2> weight, const float* bias, View<Float16, 2> out,
            Precision precision = Precision::kHighest);
void Linear(View<const BFloat16, 2> x, View<const BFloat16, 2> weight, const float* bias, View<BFloat16, 2> out,
            Precision precision = Precision::kHighest);

// Linear for weights that stay: they are packed once, as the chosen target wants them, and not at every call; after a
// change of the target the next call packs them anew. Its results have the bits of Linear's.
//
// Nothing is copied but into the packed form: weight and bias must live, and stay as they are, as long as this does.
// Any number of threads may call it at once. Packed weights take as much memory again, on tiles 1.5 times as much.
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
