#include "alibi/kernel.h"
#include "base/parallel.h"
#include "base/stream.h"
#include "headwise/alibi.h"

namespace headwise {

template <typename T>
void AddAlibi(View<const T, 4> scores, const Accumulator<T>* slopes, std::int64_t offset, View<T, 4> out) {
  const std::int64_t heads = scores.shape[1], query_len = scores.shape[2], key_len = scores.shape[3];
  const AlibiKernel<T>& kernel = ChosenAlibiKernels().Of<T>();
  const std::int64_t rows = scores.shape[0] * heads * query_len;
  const bool streamed =
      UseNonTemporalStores(scores.data, out.data, sizeof(T) * static_cast<double>(rows) * static_cast<double>(key_len));
  ParallelRanges(rows, 2.0 * static_cast<double>(rows) * static_cast<double>(key_len),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const std::int64_t i = row % query_len, h = row / query_len % heads;
                     const std::int64_t n = row / query_len / heads;
                     kernel.row(scores.at(n, h, i), slopes[h], i + offset, key_len, out.at(n, h, i), streamed);
                   }
                   if (streamed) FlushNonTemporalStores();
                 });
}

template void AddAlibi(View<const Float16, 4>, const float*, std::int64_t, View<Float16, 4>);
template void AddAlibi(View<const BFloat16, 4>, const float*, std::int64_t, View<BFloat16, 4>);
template void AddAlibi(View<const float, 4>, const float*, std::int64_t, View<float, 4>);
template void AddAlibi(View<const double, 4>, const double*, std::int64_t, View<double, 4>);

}  // namespace headwise
