#include "headwise/linear.h"

#include <algorithm>

#include "kernels/linear.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace headwise {
namespace {

// A block of columns keeps its packed weights (1 KB of depth each) in L2; a block of rows uses them often enough to pay
// for packing, and there are enough blocks for every thread.
constexpr std::int64_t kBlockColumns = 256;
constexpr std::int64_t kBlockRows = 480;  // a multiple of every tile height

template <typename T>
void Run(View<const T, 2> x, View<const T, 2> weight, const T* bias, View<T, 2> out) {
  const std::int64_t rows = out.shape[0], columns = out.shape[1], depth = x.shape[1];
  if (rows == 0 || columns == 0) return;
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
