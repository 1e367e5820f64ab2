// AttentionBackward and AttentionBackwardVarlen: the tasks of each call's schedule (schedule.h) on the kernels of the
// target (kernel.h), and the sums, in a fixed order, of what several tasks contribute to.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "attention/backward/kernel.h"
#include "attention/backward/schedule.h"
#include "attention/batch_entries.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/attention.h"
#include "headwise/attention_backward.h"

namespace headwise {
namespace {

// visit(row, size) for the contiguous rows of an array.
template <typename A, class Visit>
void ForRows(const View<A, 4>& array, const Visit& visit) {
  const auto [batch, heads, rows, width] = array.shape;
  for (std::int64_t n = 0; n < batch; ++n) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < rows; ++i) visit(array.at(n, h, i), width);
    }
  }
}

template <typename A>
std::size_t Size(const View<A, 4>& array) {
  return Bytes(1, array.shape[0], array.shape[1], array.shape[2], array.shape[3]);
}

// A contiguous array of the same shape.
template <typename A>
View<A, 4> Like(const View<A, 4>& array, A* data) {
  View<A, 4> copy{data, array.shape, {}};
  std::int64_t stride = 1;
  for (std::size_t axis = 4; axis-- > 0; stride *= array.shape[axis]) copy.stride[axis] = stride;
  return copy;
}

// array = the sum of its copies, in order.
template <typename A>
void SumCopies(const View<A, 4>& array, const A* copies, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(Size(array));
  const std::int64_t heads = array.shape[1], rows = array.shape[2], width = array.shape[3];
  if (size == 0) return;
  const std::int64_t all = array.shape[0] * heads * rows;
  ParallelRanges(all, static_cast<double>(size * count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      A* const row = array.at(r / rows / heads, r / rows % heads, r % rows);
      std::copy_n(copies + r * width, width, row);
      for (std::int64_t c = 1; c < count; ++c) {
        const A* copy = copies + c * size + r * width;
        for (std::int64_t j = 0; j < width; ++j) row[j] += copy[j];
      }
    }
  });
}

// vector[h] = the sum of parts[batch][h][...], each of `count` numbers.
template <typename A>
void SumParts(const std::vector<double>& parts, std::int64_t batch, std::int64_t heads, std::int64_t count, A* vector) {
  for (std::int64_t h = 0; h < heads; ++h) {
    double sum = 0;
    for (std::int64_t n = 0; n < batch; ++n) {
      for (std::int64_t c = 0; c < count; ++c) sum += parts[static_cast<std::size_t>((c * batch + n) * heads + h)];
    }
    vector[h] = static_cast<A>(sum);
  }
}

// One call: Allocate, Clear, every task, every task that finishes d_query, Conclude.
template <typename T>
class Backward {
  using A = Accumulator<T>;

 public:
  Backward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients)
      : args_(args),
        gradients_(gradients),
        schedule_(args, gradients),
        kernel_(ChosenAttentionBackwardKernels().Of<T>()),
        batch_(args.query.shape[0]),
        heads_(args.query.shape[1]),
        kv_heads_(args.key.shape[1]),
        chunks_(schedule_.chunks()),
        d_query_bytes_(gradients.d_query && schedule_.tasks() > 0 ? Bytes(sizeof(A), kernel_.d_query_size(args)) : 0) {
    args_.weights = {};
    if (schedule_.tasks() > 0) {
      Arena measure(nullptr);
      measure.Allocate<std::byte>(kernel_.scratch_bytes(args_, gradients_));
      if (chunks_ == 1) measure.Allocate<std::byte>(d_query_bytes_);  // finished by its task
      scratch_bytes_ = measure.used();
    }
    if (!args.spec.key_lengths.empty()) entries_ = BatchEntries(args_);
  }

  std::int64_t tasks() const { return schedule_.tasks(); }
  double work() const { return schedule_.work(); }
  // Of a thread.
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  // Of the sums of d_query, where several chunks have their own.
  std::size_t partial_bytes() const { return Finishes() ? Bytes(d_query_bytes_, batch_, kv_heads_, chunks_) : 0; }
  std::int64_t finish_tasks() const { return Finishes() ? batch_ * kv_heads_ * QueryBlocks() : 0; }
  double finish_work() const {
    return Finishes() ? static_cast<double>(chunks_) * static_cast<double>(Size(args_.query)) : 0;
  }

  // partials: of partial_bytes().
  void Allocate(std::byte* partials) {
    partials_ = partials;
    if (gradients_.d_alibi_slopes) slopes_.resize(Bytes(1, chunks_, batch_, heads_));
    if (gradients_.d_sinks) sinks_.resize(Bytes(1, batch_, heads_));
    PlaceBiasGradients();
  }

  // The gradients of biases that tasks add to become zero.
  void Clear() {
    const auto clear = [](A* row, std::int64_t width) { std::fill_n(row, width, A{0}); };
    for (const auto& d_bias : gradients_.d_bias) {
      if (d_bias && schedule_.Copies(d_bias) == 0 && !IsStored(d_bias)) ForRows(d_bias, clear);
    }
    if (gradients_.d_relative_bias && relative_.count == 0) ForRows(gradients_.d_relative_bias, clear);
  }

  void RunTask(std::int64_t task, std::byte* scratch) {
    Arena arena(scratch);
    std::byte* const memory = arena.Allocate<std::byte>(kernel_.scratch_bytes(args_, gradients_));
    A* const own = chunks_ == 1 ? reinterpret_cast<A*>(arena.Allocate<std::byte>(d_query_bytes_)) : nullptr;
    schedule_.ForHeads(task, [&](std::int64_t batch, std::int64_t kv_head) {
      RunChunk(task, batch, kv_head, own ? own : Partial(batch, kv_head, schedule_.chunk_of(task)), memory);
      if (chunks_ == 1 && gradients_.d_query && !Interrupted(0)) Finish(batch, kv_head, 0, args_.query.shape[2], own);
    });
  }

  void FinishTask(std::int64_t task) const {
    const std::int64_t head = task / QueryBlocks(), begin = task % QueryBlocks() * kBackwardQueries;
    const std::int64_t end = std::min(args_.query.shape[2], begin + kBackwardQueries);
    Finish(head / kv_heads_, head % kv_heads_, begin, end, Partial(head / kv_heads_, head % kv_heads_, 0));
  }

  void Conclude() {
    for (const Copies& c : copies_) SumCopies(c.array, c.memory.data(), c.count);
    if (relative_.count > 0) SumCopies(relative_.array, relative_.memory.data(), relative_.count);
    if (gradients_.d_alibi_slopes) SumParts(slopes_, batch_, heads_, chunks_, gradients_.d_alibi_slopes);
    if (gradients_.d_sinks) SumParts(sinks_, batch_, heads_, 1, gradients_.d_sinks);
  }

 private:
  struct Copies {
    View<A, 4> array;
    std::int64_t count = 0;
    std::vector<A> memory;
  };

  bool Finishes() const { return chunks_ > 1 && gradients_.d_query && schedule_.tasks() > 0; }
  std::int64_t QueryBlocks() const { return (args_.query.shape[2] + kBackwardQueries - 1) / kBackwardQueries; }

  // The sums of d_query of a chunk. They are contiguous over the chunks of a head.
  A* Partial(std::int64_t batch, std::int64_t kv_head, std::int64_t chunk) const {
    const auto index = static_cast<std::size_t>((batch * kv_heads_ + kv_head) * chunks_ + chunk);
    return reinterpret_cast<A*>(partials_ + d_query_bytes_ * index);
  }

  // Whether chunks cover the gradient, each its own part of it.
  bool IsStored(const View<A, 4>& d_bias) const {
    const auto& [batch, heads, query_len, head_dim] = args_.query.shape;
    return d_bias && entries_.empty() &&
           d_bias.shape == std::array<std::int64_t, 4>{batch, heads, query_len, args_.key.shape[2]};
  }

  // The arrays of the gradients of biases; copies are zero.
  void PlaceBiasGradients() {
    if (const auto& d_relative = gradients_.d_relative_bias) {
      const std::int64_t count = schedule_.RelativeCopies();
      if (count > 0) relative_ = {d_relative, count, std::vector<A>(Bytes(Size(d_relative), count))};
    }
    const std::size_t biases = gradients_.d_bias.size();
    for (const auto& d_bias : gradients_.d_bias) {
      if (!d_bias) continue;
      if (const std::int64_t count = schedule_.Copies(d_bias)) {
        copies_.push_back({d_bias, count, std::vector<A>(Bytes(Size(d_bias), count))});
      }
    }
    d_bias_.resize(Bytes(biases, schedule_.tasks()));
    for (std::int64_t task = 0; task < schedule_.tasks(); ++task) {
      auto copies = copies_.begin();
      for (std::size_t i = 0; i < biases; ++i) {
        const View<A, 4>& array = gradients_.d_bias[i];
        BiasPartial<T>& to = d_bias_[static_cast<std::size_t>(task) * biases + i];
        to = {array, IsStored(array)};
        if (!array || schedule_.Copies(array) == 0) continue;
        to.array =
            Like(array, copies->memory.data() + Size(array) * static_cast<std::size_t>(schedule_.CopyOf(array, task)));
        ++copies;
      }
    }
  }

  // The arguments of a batch entry, and its index there.
  const AttentionArgs<T>& Entry(std::int64_t& batch) const {
    if (entries_.empty()) return args_;
    const AttentionArgs<T>& entry = entries_[static_cast<std::size_t>(batch)];
    batch = 0;
    return entry;
  }

  void RunChunk(std::int64_t task, std::int64_t batch, std::int64_t kv_head, A* d_query, std::byte* memory) {
    const std::int64_t chunk = schedule_.chunk_of(task), group = heads_ / kv_heads_, entry = batch;
    const std::int64_t head = batch * heads_ + kv_head * group, key_begin = chunk * schedule_.chunk_keys();
    BackwardPartials<T> partials;
    partials.d_query = gradients_.d_query ? d_query : nullptr;
    partials.d_bias = d_bias_.data() + static_cast<std::size_t>(task) * gradients_.d_bias.size();
    if (gradients_.d_alibi_slopes) partials.d_alibi_slopes = slopes_.data() + chunk * batch_ * heads_ + head;
    if (gradients_.d_sinks && chunk == 0) partials.d_sinks = sinks_.data() + head;
    partials.d_relative_bias = gradients_.d_relative_bias;
    if (relative_.count > 0) {
      const auto copy = static_cast<std::size_t>(schedule_.RelativeCopyOf(task));
      partials.d_relative_bias = Like(relative_.array, relative_.memory.data() + Size(relative_.array) * copy);
    }
    const std::int64_t key_end = std::min(args_.key.shape[2], key_begin + schedule_.chunk_keys());
    const AttentionArgs<T>& args = Entry(batch);
    kernel_.chunk(args, gradients_, {batch, kv_head, key_begin, key_end}, entry, partials, memory);
  }

  void Finish(std::int64_t batch, std::int64_t kv_head, std::int64_t begin, std::int64_t end, A* partials) const {
    const std::int64_t entry = batch;
    const AttentionArgs<T>& args = Entry(batch);
    kernel_.finish_query(args, gradients_.d_query, entry, kv_head, begin, end, chunks_, schedule_.chunk_keys(),
                         partials);
  }

  AttentionArgs<T> args_;
  const AttentionGradients<T>& gradients_;
  const BackwardSchedule schedule_;
  const AttentionBackwardKernel<T>& kernel_;
  const std::int64_t batch_, heads_, kv_heads_, chunks_;
  const std::size_t d_query_bytes_;  // of a chunk
  std::size_t scratch_bytes_ = 0;
  std::byte* partials_ = nullptr;
  std::vector<AttentionArgs<T>> entries_;  // with key_lengths
  std::vector<double> slopes_, sinks_;     // [chunks][batch][heads] and [batch][heads]
  std::vector<BiasPartial<T>> d_bias_;     // [tasks][biases]
  std::vector<Copies> copies_;             // in the order of the biases that need them
  Copies relative_;                        // of the gradient of the relative bias
};

// The tasks of all calls, in the order of the calls, as one parallel region.
class Region {
 public:
  // call c has count(c) tasks and work(c) operations.
  template <class Calls, class Count, class Work>
  Region(const Calls& calls, const Count& count, const Work& work) {
    ends_.reserve(calls.size());
    double all = 0;
    for (const auto& call : calls) {
      tasks_ += count(call), all += work(call);
      ends_.push_back(tasks_);
    }
    if (tasks_ > 0) threads_ = ThreadsFor(tasks_, all);
  }

  int threads() const { return threads_; }

  // run(c, task, thread) for every task of call c.
  template <class Run>
  void ForTasks(const Run& run) const {
    if (tasks_ == 0) return;
    ParallelFor(tasks_, threads_, [&](std::int64_t task, int thread) {
      const auto call = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), task) - ends_.begin());
      run(call, call > 0 ? task - ends_[call - 1] : task, thread);
    });
  }

 private:
  std::vector<std::int64_t> ends_;  // behind each call's last task
  std::int64_t tasks_ = 0;
  int threads_ = 1;
};

// All memory is allocated before the first result is written.
template <typename T>
void RunCalls(std::deque<Backward<T>>& calls) {
  const Region tasks(
      calls, [](const Backward<T>& call) { return call.tasks(); }, [](const Backward<T>& call) { return call.work(); });
  const Region finishing(
      calls, [](const Backward<T>& call) { return call.finish_tasks(); },
      [](const Backward<T>& call) { return call.finish_work(); });
  std::size_t scratch_bytes = 0;
  Arena measure(nullptr);
  for (const Backward<T>& call : calls) {
    scratch_bytes = std::max(scratch_bytes, call.scratch_bytes());
    measure.Allocate<std::byte>(call.partial_bytes());
  }
  const Scratch scratch(tasks.threads(), scratch_bytes);
  const Scratch partials(1, measure.used());
  Arena arena(partials.thread(0));
  for (Backward<T>& call : calls) call.Allocate(arena.Allocate<std::byte>(call.partial_bytes()));
  for (Backward<T>& call : calls) call.Clear();
  tasks.ForTasks(
      [&](std::size_t call, std::int64_t task, int thread) { calls[call].RunTask(task, scratch.thread(thread)); });
  finishing.ForTasks([&](std::size_t call, std::int64_t task, int) { calls[call].FinishTask(task); });
  for (Backward<T>& call : calls) call.Conclude();
}

}  // namespace

template <typename T>
void AttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients) {
  CheckAttentionBackward(args, gradients);
  std::deque<Backward<T>> calls;
  calls.emplace_back(args, gradients);
  RunCalls(calls);
}
template void AttentionBackward(const AttentionArgs<Float16>&, const AttentionGradients<Float16>&);
template void AttentionBackward(const AttentionArgs<BFloat16>&, const AttentionGradients<BFloat16>&);
template void AttentionBackward(const AttentionArgs<float>&, const AttentionGradients<float>&);
template void AttentionBackward(const AttentionArgs<double>&, const AttentionGradients<double>&);

template <typename T>
void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<T>>& calls) {
  for (const AttentionBackwardCall<T>& call : calls) CheckAttentionBackward(call.args, call.gradients);
  std::deque<Backward<T>> started;
  for (const AttentionBackwardCall<T>& call : calls) started.emplace_back(call.args, call.gradients);
  RunCalls(started);
}
template void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<Float16>>&);
template void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<BFloat16>>&);
template void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<float>>&);
template void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<double>>&);

}  // namespace headwise
