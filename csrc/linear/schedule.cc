#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/linear.h"
#include "linear/kernel.h"

namespace headwise {
namespace {

// Schedules the linear map: blocks of the output, threads, and the packing of constant weights.
//
// The packed weights of a block (1 KB of depth per column) stay in L2; blocks are wide because x is packed again for
// each block of columns. A block has enough rows to amortise the packing of weights, and few enough for every thread to
// get several blocks.
constexpr std::int64_t kBlockColumns = kLinearBlockColumns;
constexpr std::int64_t kBlockRows = 480;  // a multiple of every tile height
constexpr std::int64_t kMinBlockRows = 30;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of a block: for at least three blocks per thread, or up to twice as many if threads then finish more evenly.
std::int64_t BlockRows(std::int64_t rows, std::int64_t column_blocks, int threads, std::int64_t tile_rows) {
  const std::int64_t max_blocks = std::max<std::int64_t>(1, rows / kMinBlockRows);
  const std::int64_t min_blocks =
      std::min(max_blocks, std::max(CeilDiv(rows, kBlockRows), CeilDiv(3 * threads, column_blocks)));
  std::int64_t best = 0, shortest = 0;  // rows of the thread that finishes last
  for (std::int64_t blocks = min_blocks; blocks <= std::min(max_blocks, 2 * min_blocks); ++blocks) {
    const std::int64_t size = CeilDiv(CeilDiv(rows, blocks), tile_rows) * tile_rows;
    const std::int64_t longest = CeilDiv(column_blocks * CeilDiv(rows, size), threads) * size;
    // Every further block packs weights or x once more, so a gain below 1/32 is not worth it.
    if (best == 0 || longest + longest / 32 < shortest) best = size, shortest = longest;
  }
  return best;
}

// Cost of loading one weight from memory, in floating-point operations of one core.
constexpr double kWorkPerWeight = 8;

// Small M: ranges of columns, two per thread; rows of weights are read fastest in long pieces, from 1 KB on.
template <typename T>
void RunGemv(const LinearArgs<T>& args) {
  const GemvKernel<T>& kernel = ChosenGemvKernels().Of<T>();
  constexpr std::int64_t kShortest = 256, kLongest = 2048, kMultiple = 64;
  const std::int64_t columns = args.out.shape[1];
  const double work = kWorkPerWeight * static_cast<double>(columns) * static_cast<double>(args.x.shape[1]);
  const std::int64_t wanted = 2 * ThreadsFor(columns, work);
  const std::int64_t fair = CeilDiv(columns / wanted, kMultiple) * kMultiple;
  const std::int64_t width = std::clamp(fair, kShortest, kLongest);
  const std::int64_t ranges = CeilDiv(columns, width);
  const int threads = ThreadsFor(ranges, work);
  const Scratch scratch(threads, kernel.scratch_bytes(args, std::min(columns, width)));
  ParallelFor(ranges, threads, [&](std::int64_t i, int thread) {
    kernel.columns(args, i * width, std::min(columns, (i + 1) * width), scratch.thread(thread));
  });
}

template <typename T>
void Run(const LinearKernel<T>& kernel, const LinearArgs<T>& args) {
  const std::int64_t rows = args.out.shape[0], columns = args.out.shape[1], depth = args.x.shape[1];
  if (rows == 0 || columns == 0) return;
  if (rows <= kernel.max_gemv_rows(args) && (args.weight.stride[0] == 1 || args.weight.stride[1] == 1))
    return RunGemv(args);
  const std::int64_t column_blocks = CeilDiv(columns, kBlockColumns);
  const double work = 2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
  const int wanted = ThreadsFor(rows * columns, work);
  const std::int64_t block_rows = BlockRows(rows, column_blocks, wanted, kernel.tile_rows);
  const std::int64_t row_blocks = CeilDiv(rows, block_rows);
  const std::int64_t tasks = column_blocks * row_blocks;
  const int threads = static_cast<int>(std::min<std::int64_t>(wanted, tasks));

  const Scratch scratch(threads, kernel.scratch_bytes(args, {0, block_rows, 0, std::min(columns, kBlockColumns)}));
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const std::int64_t row = task % row_blocks * block_rows, column = task / row_blocks * kBlockColumns;
    const LinearBlock block{row, std::min(rows, row + block_rows), column, std::min(columns, column + kBlockColumns)};
    kernel.block(args, block, scratch.thread(thread));
  });
}

// Weights packed for one kernel.
template <typename T>
struct Packed {
  Packed(const LinearKernel<T>& kernel_for, View<const T, 2> weight, Precision precision)
      : kernel(kernel_for), memory(1, kernel.packed_bytes(weight, precision)) {
    const std::int64_t columns = weight.shape[1], blocks = CeilDiv(columns, kBlockColumns);
    const double work = kWorkPerWeight * static_cast<double>(weight.shape[0]) * static_cast<double>(columns);
    ParallelFor(blocks, ThreadsFor(blocks, work), [&](std::int64_t i, int) {
      const std::int64_t begin = i * kBlockColumns;
      kernel.pack(weight, precision, begin, std::min(columns, begin + kBlockColumns), memory.thread(0));
    });
  }

  const LinearKernel<T>& kernel;
  const Scratch memory;
  const Packed* next = nullptr;  // for another kernel
};

}  // namespace

template <typename T>
void Linear(View<const T, 2> x, View<const T, 2> weight, const Accumulator<T>* bias, View<T, 2> out,
            Precision precision) {
  Run(GetLinearKernel<T>(), {x, weight, bias, out, precision, nullptr});
}
template void Linear(View<const Float16, 2>, View<const Float16, 2>, const float*, View<Float16, 2>, Precision);
template void Linear(View<const BFloat16, 2>, View<const BFloat16, 2>, const float*, View<BFloat16, 2>, Precision);
template void Linear(View<const float, 2>, View<const float, 2>, const float*, View<float, 2>, Precision);
template void Linear(View<const double, 2>, View<const double, 2>, const double*, View<double, 2>, Precision);

// The packed weights of every target used so far, in a list that only grows. It needs no lock: a child process forked
// while another thread held one would wait forever.
template <typename T>
class PackedLinear<T>::State {
 public:
  State(View<const T, 2> weight, const Accumulator<T>* bias, Precision precision)
      : weight_(weight), bias_(bias), precision_(precision) {
    ForTarget();
  }
  ~State() {
    for (const Packed<T>* packed = first_; packed;) delete std::exchange(packed, packed->next);
  }

  void Run(View<const T, 2> x, View<T, 2> out) {
    // The kernel that the weights were packed for, even if another thread has changed the target since.
    const Packed<T>& packed = ForTarget();
    headwise::Run<T>(packed.kernel, {x, weight_, bias_, out, precision_, packed.memory.thread(0)});
  }

 private:
  const Packed<T>& ForTarget() {
    const LinearKernel<T>& kernel = GetLinearKernel<T>();
    const Packed<T>* first = first_.load(std::memory_order_acquire);
    for (const Packed<T>* packed = first; packed; packed = packed->next) {
      if (&packed->kernel == &kernel) return *packed;
    }
    // Two threads that find nothing packed at the same time both pack.
    auto packed = std::make_unique<Packed<T>>(kernel, weight_, precision_);
    do {
      packed->next = first;
    } while (!first_.compare_exchange_weak(first, packed.get(), std::memory_order_acq_rel));
    return *packed.release();
  }

  const View<const T, 2> weight_;
  const Accumulator<T>* const bias_;
  const Precision precision_;
  std::atomic<const Packed<T>*> first_{nullptr};
};

template <typename T>
PackedLinear<T>::PackedLinear(View<const T, 2> weight, const Accumulator<T>* bias, Precision precision)
    : state_(std::make_unique<State>(weight, bias, precision)) {}
template <typename T>
PackedLinear<T>::~PackedLinear() = default;
template <typename T>
PackedLinear<T>::PackedLinear(PackedLinear&&) noexcept = default;
template <typename T>
PackedLinear<T>& PackedLinear<T>::operator=(PackedLinear&&) noexcept = default;
template <typename T>
void PackedLinear<T>::operator()(View<const T, 2> x, View<T, 2> out) const {
  state_->Run(x, out);
}

template class PackedLinear<Float16>;
template class PackedLinear<BFloat16>;
template class PackedLinear<float>;
template class PackedLinear<double>;

}  // namespace headwise
