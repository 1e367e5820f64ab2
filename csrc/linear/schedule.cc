#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <utility>

#include "base/parallel.h"
#include "base/scratch.h"
#include "base/targets.h"
#include "headwise/linear.h"
#include "linear/kernel.h"
#include "matmul/bf16_policy.h"

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
template <typename X, typename W>
void RunGemv(const GemvKernel<X, W>& kernel, const LinearArgs<X, W>& args) {
  constexpr std::int64_t kShortest = 256, kLongest = 2048, kMultiple = kGemvMultiple;
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

template <typename X, typename W>
void Run(const LinearKernel<X, W>& kernel, const LinearArgs<X, W>& args) {
  const std::int64_t rows = args.out.shape[0], columns = args.out.shape[1], depth = args.x.shape[1];
  if (rows == 0 || columns == 0) return;
  if (rows <= kernel.max_gemv_rows(args) && (args.weight.stride[0] == 1 || args.weight.stride[1] == 1)) {
    LinearArgs<X, W> read = args;
    if (args.weight.stride[1] != 1 || !kernel.packing.panels(args.precision)) read.packed = nullptr;
    return RunGemv(kernel.gemv, read);
  }
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

// 16-bit weights under float32 x: on a bf16 backend, which splits float32 numbers, blocked products read the weights
// widened, as they would read float32 weights.
template <typename X, typename W>
bool NeedsWidening(std::int64_t rows, Precision precision) {
  return !std::is_same_v<X, W> && rows > kMaxGemvRows && LinearTerms<X>(ChosenMatmulBackend(), precision) > 0;
}

template <typename X, typename W>
void RunWidened(const LinearPacking<W>& packing, const LinearArgs<X, W>& args) {
  if constexpr (!std::is_same_v<X, W>) {
    const View<const W, 2>& weight = args.weight;
    const int contiguous = weight.stride[1] == 1 ? 1 : 0, other = 1 - contiguous;
    const std::int64_t length = weight.shape[contiguous], lines = weight.shape[other];
    const Scratch memory(1, Bytes(sizeof(X), lines, length));
    X* const wide = reinterpret_cast<X*>(memory.thread(0));
    const double work = kWorkPerWeight * static_cast<double>(lines) * static_cast<double>(length);
    ParallelFor(lines, ThreadsFor(lines, work), [&](std::int64_t i, int) {
      packing.widen(weight.data + i * weight.stride[other], length, wide + i * length);
    });
    View<const X, 2> widened{wide, weight.shape, {1, 1}};
    widened.stride[other] = length;
    Run(GetLinearKernel<X>(), {args.x, widened, args.bias, args.out, args.precision, nullptr});
  }
}

// Packed weights, one form of several.
template <typename W>
struct Packed {
  Packed(const LinearPacking<W>& packing, View<const W, 2> weight, Precision precision)
      : pack(packing.pack), memory(1, packing.packed_bytes(weight, precision)) {
    const std::int64_t columns = weight.shape[1], blocks = CeilDiv(columns, kBlockColumns);
    const double work = kWorkPerWeight * static_cast<double>(weight.shape[0]) * static_cast<double>(columns);
    ParallelFor(blocks, ThreadsFor(blocks, work), [&](std::int64_t i, int) {
      const std::int64_t begin = i * kBlockColumns;
      pack(weight, precision, begin, std::min(columns, begin + kBlockColumns), memory.thread(0));
    });
  }

  decltype(LinearPacking<W>::pack) pack;
  const Scratch memory;
  const Packed* next = nullptr;
};

}  // namespace

template <typename X, typename W>
void Linear(View<const X, 2> x, View<const W, 2> weight, const Accumulator<X>* bias, View<X, 2> out,
            Precision precision) {
  const LinearKernel<X, W>& kernel = GetLinearKernel<X, W>();
  const LinearArgs<X, W> args{x, weight, bias, out, precision, nullptr};
  if (NeedsWidening<X, W>(x.shape[0], precision)) return RunWidened(kernel.packing, args);
  Run(kernel, args);
}
template void Linear(View<const Float16, 2>, View<const Float16, 2>, const float*, View<Float16, 2>, Precision);
template void Linear(View<const BFloat16, 2>, View<const BFloat16, 2>, const float*, View<BFloat16, 2>, Precision);
template void Linear(View<const float, 2>, View<const float, 2>, const float*, View<float, 2>, Precision);
template void Linear(View<const double, 2>, View<const double, 2>, const double*, View<double, 2>, Precision);
template void Linear(View<const float, 2>, View<const Float16, 2>, const float*, View<float, 2>, Precision);
template void Linear(View<const float, 2>, View<const BFloat16, 2>, const float*, View<float, 2>, Precision);

// The packed forms of every target used so far, in a list that only grows. It needs no lock: a child process forked
// while another thread held one would wait forever.
template <typename T>
class PackedLinear<T>::State {
 public:
  State(View<const T, 2> weight, const Accumulator<T>* bias, Precision precision)
      : weight_(weight), bias_(bias), precision_(precision) {
    // The form of 16-bit weights depends on x.
    if (!kIs16Bit<T>) For(GetLinearKernel<T>().packing);
  }
  ~State() {
    for (const Packed<T>* packed = first_; packed;) delete std::exchange(packed, packed->next);
  }

  template <typename X>
  void Run(View<const X, 2> x, View<X, 2> out) {
    // Kernel and packed form are of one target, even if another thread changes the target meanwhile.
    const LinearKernel<X, T>& kernel = GetLinearKernel<X, T>();
    LinearArgs<X, T> args{x, weight_, bias_, out, precision_, nullptr};
    if (NeedsWidening<X, T>(x.shape[0], precision_)) return RunWidened(kernel.packing, args);
    args.packed = For(kernel.packing).memory.thread(0);
    headwise::Run(kernel, args);
  }

 private:
  const Packed<T>& For(const LinearPacking<T>& packing) {
    const Packed<T>* first = first_.load(std::memory_order_acquire);
    for (const Packed<T>* packed = first; packed; packed = packed->next) {
      if (packed->pack == packing.pack) return *packed;
    }
    // Two threads that find nothing packed at the same time both pack.
    auto packed = std::make_unique<Packed<T>>(packing, weight_, precision_);
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
template <typename X>
void PackedLinear<T>::operator()(View<const X, 2> x, View<X, 2> out) const {
  state_->Run(x, out);
}

template class PackedLinear<Float16>;
template class PackedLinear<BFloat16>;
template class PackedLinear<float>;
template class PackedLinear<double>;
template void PackedLinear<Float16>::operator()(View<const Float16, 2>, View<Float16, 2>) const;
template void PackedLinear<BFloat16>::operator()(View<const BFloat16, 2>, View<BFloat16, 2>) const;
template void PackedLinear<float>::operator()(View<const float, 2>, View<float, 2>) const;
template void PackedLinear<double>::operator()(View<const double, 2>, View<double, 2>) const;
template void PackedLinear<Float16>::operator()(View<const float, 2>, View<float, 2>) const;
template void PackedLinear<BFloat16>::operator()(View<const float, 2>, View<float, 2>) const;

}  // namespace headwise
