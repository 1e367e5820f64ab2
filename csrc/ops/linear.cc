#include "headwise/linear.h"

#include <algorithm>

#include "kernels/linear.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace headwise {
namespace {

// A block of columns keeps its packed weights (1 KB of depth each) in L2; it is wide because x is packed again for
// each. A block of rows uses them often enough to pay for packing, and there are enough blocks for every thread.
constexpr std::int64_t kBlockColumns = 512;
constexpr std::int64_t kBlockRows = 480;  // a multiple of every tile height

// To read one from memory, in floating-point operations of one core in the same time.
constexpr double kWorkPerWeight = 8;

// Up to here, reading the weights where they lie is faster than packing them.
constexpr std::int64_t kFewRows = 16;

// Strips of columns, two per thread; rows of weights are read best in long pieces, from 1 KB on.
template <typename T>
void RunFewRows(View<const T, 2> x, View<const T, 2> weight, const T* bias, View<T, 2> out) {
  constexpr std::int64_t kShortest = 256, kLongest = 2048, kMultiple = 64;
  const std::int64_t columns = out.shape[1];
  const double work = kWorkPerWeight * static_cast<double>(columns) * static_cast<double>(x.shape[1]);
  const std::int64_t wanted = 2 * ThreadsFor(columns, work);
  const std::int64_t fair = (columns / wanted + kMultiple - 1) / kMultiple * kMultiple;
  const std::int64_t strip = std::clamp(fair, kShortest, kLongest);
  const std::int64_t strips = (columns + strip - 1) / strip;
  const LinearKernel<T>& kernel = GetLinearKernel<T>();
  ParallelFor(strips, ThreadsFor(strips, work), [&](std::int64_t i, int) {
    kernel.few_rows(x, weight, bias, out, i * strip, std::min(columns, (i + 1) * strip));
  });
}

template <typename T>
void Run(View<const T, 2> x, View<const T, 2> weight, const T* bias, View<T, 2> out) {
  const std::int64_t rows = out.shape[0], columns = out.shape[1], depth = x.shape[1];
  if (rows == 0 || columns == 0) return;
  if (rows <= kFewRows && (weight.stride[0] == 1 || weight.stride[1] == 1)) return RunFewRows(x, weight, bias, out);
  const LinearKernel<T>& kernel = GetLinearKernel<T>();
  const std::int64_t column_blocks = (columns + kBlockColumns - 1) / kBlockColumns;
  const double work = 2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
  const int wanted = ThreadsFor(rows * columns, work);
  std::int64_t block_rows = std::min(kBlockRows, rows);
  while (block_rows > 60 && column_blocks * ((rows + block_rows - 1) / block_rows) < 3 * wanted) block_rows /= 2;
  const std::int64_t row_blocks = (rows + block_rows - 1) / block_rows;
  const std::int64_t tasks = column_blocks * row_blocks;
  const int threads = static_cast<int>(std::min<std::int64_t>(wanted, tasks));

  const Scratch scratch(threads, kernel.scratch_bytes({0, block_rows, 0, std::min(columns, kBlockColumns)}, depth));
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const std::int64_t row = task % row_blocks * block_rows, column = task / row_blocks * kBlockColumns;
    const LinearBlock block{row, std::min(rows, row + block_rows), column, std::min(columns, column + kBlockColumns)};
    kernel.block(x, weight, bias, out, block, scratch.thread(thread));
  });
}

}  // namespace

void Linear(View<const float, 2> x, View<const float, 2> weight, const float* bias, View<float, 2> out) {
  Run(x, weight, bias, out);
}
void Linear(View<const double, 2> x, View<const double, 2> weight, const double* bias, View<double, 2> out) {
  Run(x, weight, bias, out);
}

}  // namespace headwise
