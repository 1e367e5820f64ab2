#include <algorithm>

#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/linear_attention.h"
#include "linear_attention/kernel.h"

namespace headwise {
namespace {

// Value columns are independent of each other. They are shared out where there are few heads, in blocks that depend on
// shapes alone, so that results do not depend on the number of threads; each block computes the scores again.
constexpr std::int64_t kFewHeads = 4, kMinColumns = 32;

template <typename T>
std::int64_t ColumnsPerTask(const LinearAttentionArgs<T>& args) {
  const std::int64_t heads = args.key.shape[0] * args.key.shape[1], columns = args.value.shape[3];
  if (heads >= kFewHeads || args.key.shape[2] <= kTokenByToken) return std::max<std::int64_t>(1, columns);
  const std::int64_t blocks = kFewHeads / heads;
  const std::int64_t share = (columns + blocks - 1) / blocks;
  return std::max(kMinColumns, (share + kMinColumns - 1) / kMinColumns * kMinColumns);
}

template <typename T>
double WorkOf(const LinearAttentionArgs<T>& args) {
  const auto& key = args.key.shape;
  const auto tokens = static_cast<double>(key[2]),
             queries = static_cast<double>(args.query.shape[1]) * static_cast<double>(args.query.shape[2]);
  const double state = static_cast<double>(key[3]) * static_cast<double>(args.new_state.shape[3]);
  // The state is read and written at least once, at some bytes per operation.
  return static_cast<double>(key[0]) *
         (4 * state * (queries + static_cast<double>(key[1]) * tokens) + 2 * static_cast<double>(key[1]) * state);
}

}  // namespace

template <typename T>
void LinearAttention(const LinearAttentionArgs<T>& args) {
  const std::int64_t batch = args.key.shape[0], heads = args.key.shape[1], columns = args.value.shape[3];
  if (batch * heads == 0) return;
  const LinearAttentionKernel<T>& kernel = ChosenLinearAttentionKernels().Of<T>();
  const std::int64_t width = ColumnsPerTask(args);
  const std::int64_t blocks = std::max<std::int64_t>(1, (columns + width - 1) / width);
  const std::int64_t tasks = batch * heads * blocks;
  const int threads = ThreadsFor(tasks, WorkOf(args));
  const Scratch scratch(threads, kernel.scratch_bytes(args, std::min(width, columns)));
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const std::int64_t head = task / blocks, begin = task % blocks * width;
    kernel.run(args, {head / heads, head % heads, begin, std::min(begin + width, columns)}, scratch.thread(thread));
  });
}

template void LinearAttention(const LinearAttentionArgs<Float16>&);
template void LinearAttention(const LinearAttentionArgs<BFloat16>&);
template void LinearAttention(const LinearAttentionArgs<float>&);
template void LinearAttention(const LinearAttentionArgs<double>&);

}  // namespace headwise
