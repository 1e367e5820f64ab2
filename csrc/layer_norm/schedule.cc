#include <algorithm>

#include "base/parallel.h"
#include "base/stream.h"
#include "headwise/layer_norm.h"
#include "layer_norm/kernel.h"

namespace headwise {
namespace {

// Minimum distance in elements between the row being computed and the row being prefetched: a few microseconds.
constexpr std::int64_t kAhead = 2048;

template <typename T>
void NormRows(typename LayerNormKernel<T>::Row norm, View<const T, 2> x, const T* gamma, const T* beta, double eps,
              View<T, 2> out) {
  const auto [rows, n] = x.shape;
  const bool streamed =
      UseNonTemporalStores(x.data, out.data, sizeof(T) * static_cast<double>(rows) * static_cast<double>(n));
  const std::int64_t ahead = n >= kAhead ? 1 : kAhead / std::max<std::int64_t>(n, 1);
  ParallelRanges(rows, 8.0 * static_cast<double>(rows) * static_cast<double>(n),
                 [&, n = n](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t r = begin; r < end; ++r) {
                     const T* const next = x.at(std::min(r + ahead, end - 1));
                     norm(x.at(r), gamma, beta, eps, n, out.at(r), streamed, next);
                   }
                   if (streamed) FlushNonTemporalStores();
                 });
}

}  // namespace

template <typename T>
void LayerNorm(View<const T, 2> x, const T* gamma, const T* beta, double eps, View<T, 2> out) {
  NormRows<T>(ChosenLayerNormKernels().Of<T>().layer_norm, x, gamma, beta, eps, out);
}

template <typename T>
void RmsNorm(View<const T, 2> x, const T* gamma, double eps, View<T, 2> out) {
  NormRows<T>(ChosenLayerNormKernels().Of<T>().rms_norm, x, gamma, nullptr, eps, out);
}

template void LayerNorm(View<const Float16, 2>, const Float16*, const Float16*, double, View<Float16, 2>);
template void LayerNorm(View<const BFloat16, 2>, const BFloat16*, const BFloat16*, double, View<BFloat16, 2>);
template void LayerNorm(View<const float, 2>, const float*, const float*, double, View<float, 2>);
template void LayerNorm(View<const double, 2>, const double*, const double*, double, View<double, 2>);

template void RmsNorm(View<const Float16, 2>, const Float16*, double, View<Float16, 2>);
template void RmsNorm(View<const BFloat16, 2>, const BFloat16*, double, View<BFloat16, 2>);
template void RmsNorm(View<const float, 2>, const float*, double, View<float, 2>);
template void RmsNorm(View<const double, 2>, const double*, double, View<double, 2>);

}  // namespace headwise
