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

// A block of columns keeps its packed weights (1 KB of depth each) in L2; it is wide because x is packed again for
// each. A block of rows uses them often enough to pay for packing, and there are enough blocks for every thread.
constexpr std::int64_t kBlockColumns = kLinearBlockColumns;
constexpr std::int64_t kBlockRows = 480;  // a multiple of every tile height
constexpr std::int64_t kFewestBlockRows = 30;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of a block: at least three blocks a thread, or up to twice as many if all threads end together then.
std::int64_t BlockRows(std::int64_t rows, std::int64_t column_blocks, int threads, std::int64_t tile_rows) {
  const std::int64_t most = std::max<std::int64_t>(1, rows / kFewestBlockRows);
  const std::int64_t fewest = std::min(most, std::max(CeilDiv(rows, kBlockRows), CeilDiv(3 * threads, column_blocks)));
  std::int64_t best = 0, shortest = 0;  // rows that the last thread to end has done
  for (std::int64_t blocks = fewest; blocks <= std::min(most, 2 * fewest); ++blocks) {
    const std::int64_t size = CeilDiv(CeilDiv(rows, blocks), tile_rows) * tile_rows;
    const std::int64_t longest = CeilDiv(column_blocks * CeilDiv(rows, size), threads) * size;
    // Each block of rows packs the weights, or packs x, once more: for next to nothing it is not worth it.
    if (best == 0 || longest + longest / 32 < shortest) best = size, shortest = longest;
  }
  return best;
}

// To read one from memory, in floating-point operations of one core in the same time.
constexpr double kWorkPerWeight = 8;

// Strips of columns, two per thread; rows of weights are read best in long pieces, from 1 KB on.
template <typename T>
void RunFewRows(const LinearArgs<T>& args) {
  const LinearFewKernel<T>& kernel = ChosenLinearFewKernels().Of<T>();
  constexpr std::int64_t kShortest = 256, kLongest = 2048, kMultiple = 64;
  const std::int64_t columns = args.out.shape[1];
  const double work = kWorkPerWeight * static_cast<double>(columns) * static_cast<double>(args.x.shape[1]);
  const std::int64_t wanted = 2 * ThreadsFor(columns, work);
  const std::int64_t fair = CeilDiv(columns / wanted, kMultiple) * kMultiple;
  const std::int64_t strip = std::clamp(fair, kShortest, kLongest);
  const std::int64_t strips = CeilDiv(columns, strip);
  const int threads = ThreadsFor(strips, work);
  const Scratch scratch(threads, kernel.scratch_bytes(args, std::min(columns, strip)));
  ParallelFor(strips, threads, [&](std::int64_t i, int thread) {
    kernel.columns(args, i * strip, std::min(columns, (i + 1) * strip), scratch.thread(thread));
  });
}

template <typename T>
void Run(const LinearKernel<T>& kernel, const LinearArgs<T>& args) {
  const std::int64_t rows = args.out.shape[0], columns = args.out.shape[1], depth = args.x.shape[1];
  if (rows == 0 || columns == 0) return;
  if (rows <= kernel.few_rows(args) && (args.weight.stride[0] == 1 || args.weight.stride[1] == 1))
    return RunFewRows(args);
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

// Weights as one kernel wants them.
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
  const Packed* next = nullptr;  // of another kernel
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

// No lock: a child that is forked while another thread of its parent holds one waits for it for ever. What was packed
// for one target stays when there is another.
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
    // The kernel that it was packed for, whatever the target is by now.
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
    // Two threads that come at once pack twice.
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
