#include "headwise/layer_norm.h"

#include "kernels/layer_norm.h"
#include "runtime/parallel.h"

namespace headwise {
namespace {

template <typename T>
void Run(View<const T, 2> x, const T* gamma, const T* beta, double eps, View<T, 2> out) {
  const LayerNormKernel<T>& kernel = GetLayerNormKernel<T>();
  const auto [rows, n] = x.shape;
  ParallelRanges(rows, 8.0 * static_cast<double>(rows) * static_cast<double>(n),
                 [&, n = n](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t r = begin; r < end; ++r) kernel.row(x.at(r), gamma, beta, eps, n, out.at(r));
                 });
}

}  // namespace

void LayerNorm(View<const float, 2> x, const float* gamma, const float* beta, double eps, View<float, 2> out) {
  Run(x, gamma, beta, eps, out);
}
void LayerNorm(View<const double, 2> x, const double* gamma, const double* beta, double eps, View<double, 2> out) {
  Run(x, gamma, beta, eps, out);
}

}  // namespace headwise
