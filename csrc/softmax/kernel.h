// The table of functions that each target provides for softmax, log-softmax and log-sum-exp.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

// Columns of one call: their maxima and sums stay in the first-level cache.
constexpr std::int64_t kMostColumns = 256;

// Elements of a part of a long row: it is read twice, the second time from the first-level cache.
constexpr std::int64_t kPart = 4096;

// `count` rows of n elements side by side; rows are a stride apart. `out` may be `x`, except that log-sum-exp writes 1
// value per row.
template <typename T>
struct SoftmaxRows {
  std::int64_t count;
  std::int64_t n;
  const T* x;
  std::int64_t x_stride;
  T* out;
  std::int64_t out_stride;
  Accumulator<T>* terms;  // room for n exponentials where `out` shall not hold them: halves, and past the caches
  bool streamed;          // past the caches
};

// What a part of a row adds: its maximum, and its sum of 2^kExpShift exp(x_i - maximum) with infinities cut to the
// greatest finite number in that exponent.
template <typename A>
struct SoftmaxPart {
  A max;
  double sum;
};

// One of the three, for the two layouts of an axis.
template <typename T>
struct SoftmaxFunctions {
  // Rows of up to longest_row elements.
  void (*rows)(const SoftmaxRows<T>& rows);
  std::int64_t longest_row;
  // Results of n elements of a row that is `whole` in all; log-sum-exp writes its one value and needs no x.
  void (*finish)(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed);
  // Up to kMostColumns lanes side by side; the elements of each are a stride apart.
  void (*columns)(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                  std::int64_t out_stride);
};

template <typename T>
struct SoftmaxKernel {
  // Of up to kPart elements; `next` is as many that will be read soon.
  SoftmaxPart<Accumulator<T>> (*part)(const T* x, std::int64_t n, const T* next);
  SoftmaxFunctions<T> softmax;
  SoftmaxFunctions<T> log_softmax;
  SoftmaxFunctions<T> log_sum_exp;
};

// For the current target.
const KernelSet<SoftmaxKernel>& ChosenSoftmaxKernels();

}  // namespace headwise
