// The functions that each target provides for softmax, log-softmax and log-sum-exp.
#pragma once

#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"

namespace headwise {

// Maximum columns per call: their maxima and sums stay in L1.
constexpr std::int64_t kMaxColumns = 256;

// Elements of a part of a long row, which is read twice: first from memory, then from L1.
constexpr std::int64_t kPart = 4096;

// `count` rows of n contiguous elements. `out` may be `x`; log-sum-exp writes one value per row.
template <typename T>
struct SoftmaxRows {
  std::int64_t count;
  std::int64_t n;
  const T* x;
  std::int64_t x_stride;
  T* out;
  std::int64_t out_stride;
  Accumulator<T>* terms;  // n exponentials, if `out` cannot hold them: 16-bit types, streamed
  bool streamed;          // with non-temporal stores
};

// The state of a part of a row: its maximum and the sum of 2^kExpShift exp(x_i - maximum), where infinities in the
// exponent are replaced by the largest finite numbers.
template <typename A>
struct SoftmaxPart {
  A max;
  double sum;
};

// One of the three operations, for the two layouts of an axis.
template <typename T>
struct SoftmaxFunctions {
  // Rows of at most longest_row elements.
  void (*rows)(const SoftmaxRows<T>& rows);
  std::int64_t longest_row;
  // Results of n elements of a row whose state is `whole`. Log-sum-exp writes one value and does not read x.
  void (*finish)(const T* x, std::int64_t n, SoftmaxPart<Accumulator<T>> whole, T* out, bool streamed);
  // At most kMaxColumns adjacent columns of n elements each.
  void (*columns)(const T* x, std::int64_t x_stride, std::int64_t n, std::int64_t columns, T* out,
                  std::int64_t out_stride);
};

template <typename T>
struct SoftmaxKernel {
  // The state of at most kPart elements; `next`: as many elements to prefetch.
  SoftmaxPart<Accumulator<T>> (*part)(const T* x, std::int64_t n, const T* next);
  SoftmaxFunctions<T> softmax;
  SoftmaxFunctions<T> log_softmax;
  SoftmaxFunctions<T> log_sum_exp;
};

// For the current target.
const KernelSet<SoftmaxKernel>& ChosenSoftmaxKernels();

}  // namespace headwise
