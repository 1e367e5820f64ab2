#include "headwise/softmax.h"

#include <algorithm>

#include "kernels/softmax.h"
#include "runtime/parallel.h"

namespace headwise {
namespace {

// The exponential and its share of the sweeps over memory, in floating-point operations.
constexpr double kWorkPerElement = 25;

// out: (outer, n, inner), or (outer, 1, inner) for log-sum-exp.
template <typename T>
void Run(View<const T, 3> x, SoftmaxFunctions<T> SoftmaxKernel<T>::*operation, View<T, 3> out) {
  const SoftmaxFunctions<T>& functions = GetSoftmaxKernel<T>().*operation;
  const auto [outer, n, inner] = x.shape;
  const double work =
      kWorkPerElement * static_cast<double>(outer) * static_cast<double>(n) * static_cast<double>(inner);
  if (inner == 1) {
    ParallelRanges(outer, work, [&, n = n](std::int64_t begin, std::int64_t end) {
      for (std::int64_t o = begin; o < end; ++o) functions.row(x.at(o), n, out.at(o));
    });
    return;
  }
  const std::int64_t blocks = (inner + kMostColumns - 1) / kMostColumns;
  ParallelRanges(outer * blocks, work, [&, n = n, inner = inner](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t o = task / blocks, p = task % blocks * kMostColumns;
      functions.columns(x.data + o * x.stride[0] + p, x.stride[1], n, std::min(kMostColumns, inner - p),
                        out.data + o * out.stride[0] + p, out.stride[1]);
    }
  });
}

template <typename T>
View<T, 3> WithAxis(View<T, 2> lanes) {
  return {lanes.data, {lanes.shape[0], 1, lanes.shape[1]}, {lanes.stride[0], 0, lanes.stride[1]}};
}

}  // namespace

void Softmax(View<const float, 3> x, View<float, 3> out) { Run(x, &SoftmaxKernel<float>::softmax, out); }
void Softmax(View<const double, 3> x, View<double, 3> out) { Run(x, &SoftmaxKernel<double>::softmax, out); }

void LogSoftmax(View<const float, 3> x, View<float, 3> out) { Run(x, &SoftmaxKernel<float>::log_softmax, out); }
void LogSoftmax(View<const double, 3> x, View<double, 3> out) { Run(x, &SoftmaxKernel<double>::log_softmax, out); }

void LogSumExp(View<const float, 3> x, View<float, 2> out) {
  Run(x, &SoftmaxKernel<float>::log_sum_exp, WithAxis(out));
}
void LogSumExp(View<const double, 3> x, View<double, 2> out) {
  Run(x, &SoftmaxKernel<double>::log_sum_exp, WithAxis(out));
}

}  // namespace headwise
