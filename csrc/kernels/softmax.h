// The table of functions that each target provides for softmax, log-softmax and log-sum-exp.
#pragma once

#include <cstdint>

namespace headwise {

// Columns of one call: their maxima and sums stay in the first-level cache.
constexpr std::int64_t kMostColumns = 256;

// One of the three, for the two layouts of an axis. `out` may be `x`, except that log-sum-exp writes 1 value per lane.
template <typename T>
struct SoftmaxFunctions {
  // A lane of n elements, side by side.
  void (*row)(const T* x, std::int64_t n, T* out);
  // Up to kMostColumns lanes side by side; the elements of each are a stride apart.
  void (*columns)(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                  std::int64_t out_stride);
};

template <typename T>
struct SoftmaxKernel {
  SoftmaxFunctions<T> softmax;
  SoftmaxFunctions<T> log_softmax;
  SoftmaxFunctions<T> log_sum_exp;
};

// That of the chosen target.
template <typename T>
const SoftmaxKernel<T>& GetSoftmaxKernel();

}  // namespace headwise
