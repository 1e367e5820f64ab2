// AttentionBackward: the tasks of its schedule (schedule.h) on the kernels of the target (kernel.h), and the sums, in a
// fixed order, of what several tasks contribute to.
#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <vector>

#include "attention/backward/kernel.h"
#include "attention/backward/schedule.h"
#include "attention/batch_entries.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/attention.h"

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
        chunks_(schedule_.chunks()) {
    args_.weights = {};
    if (!args.spec.key_lengths.empty()) entries_ = BatchEntries(args_);
  }

  void Run() {
    const std::int64_t tasks = schedule_.tasks();
    if (gradients_.d_alibi_slopes) slopes_.resize(Bytes(1, chunks_, batch_, heads_));
    if (gradients_.d_sinks) sinks_.resize(Bytes(1, batch_, heads_));
    PlaceBiasGradients();
    if (tasks > 0) RunTasks(tasks);
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

  // Whether chunks cover the gradient, each its own part of it.
  bool IsStored(const View<A, 4>& d_bias) const {
    const auto& [batch, heads, query_len, head_dim] = args_.query.shape;
    return d_bias && entries_.empty() &&
           d_bias.shape == std::array<std::int64_t, 4>{batch, heads, query_len, args_.key.shape[2]};
  }

  // The arrays of the bias gradients; those that tasks add to are zero.
  void PlaceBiasGradients() {
    if (const auto& d_relative = gradients_.d_relative_bias) {
      if (const std::int64_t count = schedule_.RelativeCopies()) {
        relative_ = {d_relative, count, std::vector<A>(Bytes(Size(d_relative), count))};
      } else {
        ForRows(d_relative, [](A* row, std::int64_t width) { std::fill_n(row, width, A{0}); });
      }
    }
    const std::size_t biases = gradients_.d_bias.size();
    for (const auto& d_bias : gradients_.d_bias) {
      if (!d_bias) continue;
      if (const std::int64_t count = schedule_.Copies(d_bias)) {
        copies_.push_back({d_bias, count, std::vector<A>(Bytes(Size(d_bias), count))});
      } else if (!IsStored(d_bias)) {
        ForRows(d_bias, [](A* row, std::int64_t width) { std::fill_n(row, width, A{0}); });
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

  void RunTasks(std::int64_t tasks) {
    const std::size_t scratch_bytes = kernel_.scratch_bytes(args_, gradients_);
    const std::size_t d_query_bytes = gradients_.d_query ? Bytes(sizeof(A), kernel_.d_query_size(args_)) : 0;
    const int threads = ThreadsFor(tasks, schedule_.work());
    // A single chunk's d_query is finished by its task.
    Arena measure(nullptr);
    measure.Allocate<std::byte>(scratch_bytes);
    if (chunks_ == 1) measure.Allocate<std::byte>(d_query_bytes);
    const Scratch scratch(threads, measure.used());
    std::optional<Scratch> d_query;
    if (chunks_ > 1) d_query.emplace(1, Bytes(d_query_bytes, batch_, kv_heads_, chunks_));
    const auto partial = [&](std::int64_t batch, std::int64_t kv_head, std::int64_t chunk) {
      const auto index = static_cast<std::size_t>((batch * kv_heads_ + kv_head) * chunks_ + chunk);
      return reinterpret_cast<A*>(d_query->thread(0) + d_query_bytes * index);
    };
    ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
      Arena arena(scratch.thread(thread));
      std::byte* const memory = arena.Allocate<std::byte>(scratch_bytes);
      A* const own = chunks_ == 1 ? reinterpret_cast<A*>(arena.Allocate<std::byte>(d_query_bytes)) : nullptr;
      schedule_.ForHeads(task, [&](std::int64_t batch, std::int64_t kv_head) {
        RunChunk(task, batch, kv_head, own ? own : partial(batch, kv_head, schedule_.chunk_of(task)), memory);
        if (chunks_ == 1 && gradients_.d_query && !Interrupted(0)) Finish(batch, kv_head, 0, args_.query.shape[2], own);
      });
    });
    if (chunks_ == 1 || !gradients_.d_query) return;
    const std::int64_t queries = args_.query.shape[2], blocks = (queries + kBackwardQueries - 1) / kBackwardQueries;
    const double work = static_cast<double>(chunks_) * static_cast<double>(Size(args_.query));
    const std::int64_t all = batch_ * kv_heads_ * blocks;
    ParallelFor(all, ThreadsFor(all, work), [&](std::int64_t task, int) {
      const std::int64_t head = task / blocks, begin = task % blocks * kBackwardQueries;
      const std::int64_t end = std::min(queries, begin + kBackwardQueries);
      Finish(head / kv_heads_, head % kv_heads_, begin, end, partial(head / kv_heads_, head % kv_heads_, 0));
    });
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
  std::vector<AttentionArgs<T>> entries_;  // with key_lengths
  std::vector<double> slopes_, sinks_;     // [chunks][batch][heads] and [batch][heads]
  std::vector<BiasPartial<T>> d_bias_;     // [tasks][biases]
  std::vector<Copies> copies_;             // in the order of the biases that need them
  Copies relative_;                        // of the gradient of the relative bias
};

}  // namespace

template <typename T>
void AttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients) {
  CheckAttentionBackward(args, gradients);
  Backward<T>(args, gradients).Run();
}
template void AttentionBackward(const AttentionArgs<Float16>&, const AttentionGradients<Float16>&);
template void AttentionBackward(const AttentionArgs<BFloat16>&, const AttentionGradients<BFloat16>&);
template void AttentionBackward(const AttentionArgs<float>&, const AttentionGradients<float>&);
template void AttentionBackward(const AttentionArgs<double>&, const AttentionGradients<double>&);

}  // namespace headwise
