#include <algorithm>

#include "base/parallel.h"
#include "base/stream.h"
#include "headwise/layer_norm.h"
#include "layer_norm/kernel.h"

namespace headwise {
namespace {

// Elements between the row that is computed with and the one that is fetched meanwhile, at least: some microseconds.
constexpr std::int64_t kAhead = 2048;

template <typename T>
void Run(View<const T, 2> x, const T* gamma, const T* beta, double eps, View<T, 2> out) {
  const LayerNormKernel<T>& kernel = ChosenLayerNormKernels().Of<T>();
  const auto [rows, n] = x.shape;
  const bool streamed =
      WritePastCaches(x.data, out.data, sizeof(T) * static_cast<double>(rows) * static_cast<double>(n));
  const std::int64_t ahead = n >= kAhead ? 1 : kAhead / std::max<std::int64_t>(n, 1);
  ParallelRanges(rows, 8.0 * static_cast<double>(rows) * static_cast<double>(n),
                 [&, n = n](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t r = begin; r < end; ++r) {
                     const T* const next = x.at(std::min(r + ahead, end - 1));
                     kernel.row(x.at(r), gamma, beta, eps, n, out.at(r), streamed, next);
                   }
                   if (streamed) FinishWritesPastCaches();
                 });
}

}  // namespace

void LayerNorm(View<const Float16, 2> x, const Float16* gamma, const Float16* beta, double eps, View<Float16, 2> out) {
  Run(x, gamma, beta, eps, out);
}
void LayerNorm(View<const BFloat16, 2> x, const BFloat16* gamma, const BFloat16* beta, double eps,
               View<BFloat16, 2> out) {
  Run(x, gamma, beta, eps, out);
}
void LayerNorm(View<const float, 2> x, const float* gamma, const float* beta, double eps, View<float, 2> out) {
  Run(x, gamma, beta, eps, out);
}
void LayerNorm(View<const double, 2> x, const double* gamma, const double* beta, double eps, View<double, 2> out) {
  Run(x, gamma, beta, eps, out);
}

}  // namespace headwise
