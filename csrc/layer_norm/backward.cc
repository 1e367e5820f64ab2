// Gradients of layer and RMS normalisation: blocks of rows on threads. The blocks depend on the shape alone. Each has
// sums of its own for gamma and beta, which are added in order at the end.

#include <algorithm>
#include <memory>
#include <vector>

#include "base/parallel.h"
#include "base/scratch.h"
#include "base/stream.h"
#include "headwise/layer_norm.h"
#include "layer_norm/kernel.h"

namespace headwise {
namespace {

constexpr std::int64_t kMaxBlocks = 64;
constexpr std::int64_t kMinRows = 16;  // of a block, whose sums take as much memory as one or two rows

// Rows whose sums are accumulated in the accumulator type, before they are added to a double.
constexpr std::int64_t kRowsInSum = 64;

// As in schedule.cc.
constexpr std::int64_t kAhead = 2048;

// Cost of an element in floating-point operations, memory sweeps included.
constexpr double kWorkPerElement = 20;

// d_beta may be null.
template <typename T>
void NormRowsBackward(typename LayerNormKernel<T>::Backward backward, View<const T, 2> d_out, View<const T, 2> x,
                      const T* gamma, double eps, View<T, 2> d_x, Accumulator<T>* d_gamma, Accumulator<T>* d_beta) {
  using A = Accumulator<T>;
  const auto [rows, n] = x.shape;
  const std::int64_t sums = n * (d_beta ? 2 : 1);  // of a block: n for gamma, n for beta
  const std::int64_t block = std::max(kMinRows, (rows + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t blocks = (rows + block - 1) / block;
  const bool streamed =
      UseNonTemporalStores(d_out.data, d_x.data, sizeof(T) * static_cast<double>(rows) * static_cast<double>(n));
  const double row_work = kWorkPerElement * static_cast<double>(n);
  const int threads = ThreadsFor(blocks, row_work * static_cast<double>(rows));
  const std::int64_t ahead = n >= kAhead ? 1 : kAhead / std::max<std::int64_t>(n, 1);
  const Scratch scratch(threads, Bytes(sizeof(A), sums));
  std::vector<double> totals(Bytes(1, blocks, sums));

  ParallelFor(blocks, threads, [&, rows = rows, n = n](std::int64_t task, int thread) {
    A* const sum = reinterpret_cast<A*>(scratch.thread(thread));
    double* const total = totals.data() + task * sums;
    const std::int64_t first = task * block, last = std::min(rows, first + block);
    std::fill_n(sum, sums, A{0});
    InterruptibleRanges(first, last, row_work, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t next = std::min(r + ahead, last - 1);
        backward(d_out.at(r), x.at(r), gamma, eps, n, d_x.at(r), sum, sum + n, streamed, x.at(next), d_out.at(next));
        if ((r - first) % kRowsInSum == kRowsInSum - 1 || r == last - 1) {
          for (std::int64_t i = 0; i < sums; ++i) {
            total[i] += static_cast<double>(sum[i]);
            sum[i] = 0;
          }
        }
      }
    });
    if (streamed) FlushNonTemporalStores();
  });

  ParallelRanges(sums, static_cast<double>(blocks) * static_cast<double>(sums),
                 [&, n = n](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) {
                     double all = 0;
                     for (std::int64_t b = 0; b < blocks; ++b) all += totals[static_cast<std::size_t>(b * sums + i)];
                     (i < n ? d_gamma[i] : d_beta[i - n]) = static_cast<A>(all);
                   }
                 });
}

}  // namespace

template <typename T>
void LayerNormBackward(View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps, View<T, 2> d_x,
                       Accumulator<T>* d_gamma, Accumulator<T>* d_beta) {
  NormRowsBackward<T>(ChosenLayerNormKernels().Of<T>().layer_norm_backward, d_out, x, gamma, eps, d_x, d_gamma, d_beta);
}

template <typename T>
void RmsNormBackward(View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps, View<T, 2> d_x,
                     Accumulator<T>* d_gamma) {
  NormRowsBackward<T>(ChosenLayerNormKernels().Of<T>().rms_norm_backward, d_out, x, gamma, eps, d_x, d_gamma, nullptr);
}

template void LayerNormBackward(View<const Float16, 2>, View<const Float16, 2>, const Float16*, double,
                                View<Float16, 2>, float*, float*);
template void LayerNormBackward(View<const BFloat16, 2>, View<const BFloat16, 2>, const BFloat16*, double,
                                View<BFloat16, 2>, float*, float*);
template void LayerNormBackward(View<const float, 2>, View<const float, 2>, const float*, double, View<float, 2>,
                                float*, float*);
template void LayerNormBackward(View<const double, 2>, View<const double, 2>, const double*, double, View<double, 2>,
                                double*, double*);

template void RmsNormBackward(View<const Float16, 2>, View<const Float16, 2>, const Float16*, double, View<Float16, 2>,
                              float*);
template void RmsNormBackward(View<const BFloat16, 2>, View<const BFloat16, 2>, const BFloat16*, double,
                              View<BFloat16, 2>, float*);
template void RmsNormBackward(View<const float, 2>, View<const float, 2>, const float*, double, View<float, 2>, float*);
template void RmsNormBackward(View<const double, 2>, View<const double, 2>, const double*, double, View<double, 2>,
                              double*);

}  // namespace headwise
