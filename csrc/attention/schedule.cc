#include <algorithm>
#include <atomic>
#include <new>
#include <optional>
#include <utility>

#include "attention/kernel.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/attention.h"

namespace headwise {
namespace {

// Packed queries and outputs of a block of queries, which each block of packed keys and values meets in turn. The more
// rows, the less packing costs: 3 % with 512 of them, at 64 features.
constexpr std::int64_t kBlockBytes = 1024 * 1024;
constexpr std::int64_t kMostRows = 2048;
constexpr std::int64_t kFewestRows = 48;

// Rows of the weights stay in L2 until they have met all keys.
constexpr std::int64_t kWeightsBytes = 512 * 1024;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename T>
std::int64_t BlockRows(const AttentionArgs<T>& args) {
  // A width beyond a block is as good as any other, and does not overflow.
  const auto bytes = [](std::int64_t width) {
    return std::min(width, kBlockBytes) * static_cast<std::int64_t>(sizeof(Accumulator<T>));
  };
  const std::int64_t row_bytes = bytes(args.query.shape[3]) + bytes(args.value.shape[3]);
  const std::int64_t rows = std::clamp(kBlockBytes / std::max<std::int64_t>(1, row_bytes), kFewestRows, kMostRows);
  if (!args.weights) return rows;
  return std::clamp(kWeightsBytes / std::max<std::int64_t>(1, bytes(args.key.shape[2])), kFewestRows, rows);
}

// Up to so many rows, packing keys and values costs more than it saves.
constexpr std::int64_t kMostDecodeRows = 8;

// Such a task takes as long as so many floating-point operations before it has met a key, and a byte of keys and values
// as long as one of them.
constexpr double kDecodeTaskWork = 15'000;

// Keys of a chunk: two blocks, and more of a long sequence, so that what the chunks leave stays small.
template <typename T>
std::int64_t ChunkKeys(std::int64_t key_len) {
  constexpr std::int64_t kBlock = 1024 / sizeof(Accumulator<T>), kMostChunks = 64;
  return std::max(2 * kBlock, CeilDiv(CeilDiv(key_len, kMostChunks), kBlock) * kBlock);
}

// A call as tasks: one key and value head each, and a block of its queries or, where these are few, a chunk of its
// keys.
template <typename T>
class Plan {
 public:
  explicit Plan(const AttentionArgs<T>& args) : args_(&args) {
    const auto [batch, heads, query_len, head_dim] = args.query.shape;
    if (batch == 0 || heads == 0 || query_len == 0) return;
    const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2];
    heads_ = batch * kv_heads;
    group_ = heads / kv_heads;
    work_ = 2.0 * static_cast<double>(batch * heads) * static_cast<double>(query_len) * static_cast<double>(key_len) *
            static_cast<double>(head_dim + args.value.shape[3]);
    if (group_ * query_len <= kMostDecodeRows) {
      decode_ = &ChosenDecodeKernels().Of<T>();
    } else {
      kernel_ = &GetAttentionKernel(args);
    }
    size_ = decode_ ? ChunkKeys<T>(key_len) : 1;
    parts_ = decode_ ? std::max<std::int64_t>(1, CeilDiv(key_len, size_)) : query_len;
    if (decode_) {
      const double read = static_cast<double>(sizeof(T)) * static_cast<double>(heads_) * static_cast<double>(key_len) *
                          static_cast<double>(head_dim + args.value.shape[3]);
      work_ += read + kDecodeTaskWork * static_cast<double>(tasks());
    }
  }

  double work() const { return work_; }
  // After Divide: no more than before.
  std::int64_t tasks() const { return heads_ * parts_; }
  // That with longer tasks, and of equals that which lies first in memory, comes first.
  bool operator<(const Plan& other) const {
    return std::pair(-TaskWork(), args_) < std::pair(-other.TaskWork(), other.args_);
  }

  // Blocks of queries as large as they should be, but smaller where a thread's share, of all calls' `total` work, would
  // be too few of them for all threads, not all equally fast, to be busy to the end.
  void Divide(int threads, double total) {
    if (decode_ || heads_ == 0) return;
    const std::int64_t query_len = args_->query.shape[2];
    const auto queries_in = [&](std::int64_t rows) { return std::max<std::int64_t>(1, rows / group_); };
    const auto too_few = [&](std::int64_t rows) {
      const std::int64_t tasks = heads_ * CeilDiv(query_len, queries_in(rows));
      return static_cast<double>(tasks) * total < 8.0 * threads * work_;
    };
    std::int64_t rows = BlockRows(*args_);
    while (rows > kFewestRows && threads > 1 && too_few(rows)) rows /= 2;
    size_ = std::min(query_len, queries_in(rows));
    parts_ = CeilDiv(query_len, size_);
  }

  // Tasks of all calls are numbered through, and what chunks leave lies in one piece of memory. Returns the scratch
  // that each thread needs.
  std::size_t Place(std::int64_t& tasks, Arena& partials) {
    first_task_ = tasks;
    first_partial_ = partials.used();
    tasks += this->tasks();
    if (heads_ == 0) return 0;
    if (!decode_) return kernel_->scratch_bytes(*args_, size_ * group_);
    partial_bytes_ = decode_->partial_bytes(*args_, size_);
    partials.Allocate<std::byte>(HeadBytes(), heads_);
    return decode_->scratch_bytes(*args_);
  }
  std::int64_t first_task() const { return first_task_; }

  void Begin(std::byte* partials) const {
    for (std::int64_t head = 0; decode_ && head < heads_; ++head) new (OfHead(partials, head)) Done(0);
  }

  void Run(std::int64_t task, std::byte* partials, std::byte* scratch) const {
    const std::int64_t kv_heads = args_->key.shape[1];
    if (!decode_) {
      // Late queries keep the most keys under causality: the longest tasks come first.
      const std::int64_t query = (parts_ - 1 - task / heads_) * size_, head = task % heads_;
      const std::int64_t query_end = std::min(args_->query.shape[2], query + size_);
      return kernel_->block(*args_, {head / kv_heads, head % kv_heads, query, query_end}, scratch);
    }
    const std::int64_t head = task / parts_, part = task % parts_, begin = part * size_;
    std::byte* const done = OfHead(partials, head);
    std::byte* const partial = done + kCacheLine;
    const DecodeChunk chunk{head / kv_heads, head % kv_heads, begin, std::min(args_->key.shape[2], begin + size_)};
    decode_->chunk(*args_, chunk, partial + partial_bytes_ * static_cast<std::size_t>(part), scratch);
    // Whoever is the last of a head to finish sees what the others left.
    if (reinterpret_cast<Done*>(done)->fetch_add(1, std::memory_order_acq_rel) + 1 < parts_) return;
    decode_->merge(*args_, chunk.batch, chunk.kv_head, size_, partial);
  }

 private:
  using Done = std::atomic<std::int64_t>;  // chunks of a head

  double TaskWork() const { return work_ / static_cast<double>(std::max<std::int64_t>(1, tasks())); }

  // A count of the chunks that are done, then what each left.
  std::size_t HeadBytes() const { return kCacheLine + Bytes(partial_bytes_, parts_); }
  std::byte* OfHead(std::byte* partials, std::int64_t head) const {
    return partials + first_partial_ + HeadBytes() * static_cast<std::size_t>(head);
  }

  const AttentionArgs<T>* args_;
  const AttentionKernel<T>* kernel_ = nullptr;  // one of the two, or neither where there is nothing to do
  const DecodeKernel<T>* decode_ = nullptr;
  double work_ = 0;
  std::int64_t heads_ = 0, group_ = 1;  // heads_: of keys and values, in all batch entries
  std::int64_t size_ = 1, parts_ = 0;   // queries of a block or keys of a chunk; parts of a head
  std::int64_t first_task_ = 0;
  std::size_t first_partial_ = 0, partial_bytes_ = 0;
};

// All tasks in one parallel region, those of the longest first.
template <typename T>
void Run(Plan<T>* begin, Plan<T>* end) {
  std::int64_t most_tasks = 0;
  double work = 0;
  for (Plan<T>* plan = begin; plan < end; ++plan) most_tasks += plan->tasks(), work += plan->work();
  const int wanted = ThreadsFor(most_tasks, work);
  for (Plan<T>* plan = begin; plan < end; ++plan) plan->Divide(wanted, work);
  std::sort(begin, end);

  std::int64_t tasks = 0;
  std::size_t scratch_bytes = 0;
  Arena measure(nullptr);
  for (Plan<T>* plan = begin; plan < end; ++plan) {
    scratch_bytes = std::max(scratch_bytes, plan->Place(tasks, measure));
  }
  if (tasks == 0) return;
  const int threads = static_cast<int>(std::min<std::int64_t>(wanted, tasks));
  const Scratch scratch(threads, scratch_bytes);
  std::optional<Scratch> partials;
  if (measure.used() > 0) partials.emplace(1, measure.used());
  std::byte* const left = partials ? partials->thread(0) : nullptr;
  for (const Plan<T>* plan = begin; plan < end; ++plan) plan->Begin(left);
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const auto later = [](std::int64_t t, const Plan<T>& plan) { return t < plan.first_task(); };
    const Plan<T>& plan = *(std::upper_bound(begin, end, task, later) - 1);
    plan.Run(task - plan.first_task(), left, scratch.thread(thread));
  });
}

template <typename T>
void Run(const AttentionArgs<T>& args) {
  Plan<T> plan(args);
  Run(&plan, &plan + 1);
}

template <typename T>
void Run(const std::vector<AttentionArgs<T>>& calls) {
  std::vector<Plan<T>> plans(calls.begin(), calls.end());
  Run(plans.data(), plans.data() + plans.size());
}

}  // namespace

void Attention(const AttentionArgs<float>& args) { Run(args); }
void Attention(const AttentionArgs<double>& args) { Run(args); }
void Attention(const AttentionArgs<Float16>& args) { Run(args); }
void Attention(const AttentionArgs<BFloat16>& args) { Run(args); }

void AttentionVarlen(const std::vector<AttentionArgs<float>>& calls) { Run(calls); }
void AttentionVarlen(const std::vector<AttentionArgs<double>>& calls) { Run(calls); }
void AttentionVarlen(const std::vector<AttentionArgs<Float16>>& calls) { Run(calls); }
void AttentionVarlen(const std::vector<AttentionArgs<BFloat16>>& calls) { Run(calls); }

}  // namespace headwise
