// Attention and AttentionVarlen: the tasks of all calls, by their schedules (schedule.h), on the kernels selected for
// them (kernel.h), in one parallel region.
#include "headwise/attention.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>

#include "attention/batch_entries.h"
#include "attention/kernel.h"
#include "attention/schedule.h"
#include "base/interruption.h"
#include "base/parallel.h"
#include "base/scratch.h"

namespace headwise {
namespace {

using DoneCount = std::atomic<std::int64_t>;  // chunks of a head that are done

template <typename T>
struct Call {
  explicit Call(const AttentionArgs<T>& arguments) : args(&arguments), schedule(arguments) {
    if (schedule.tasks() == 0) return;
    if (schedule.decode()) {
      decode = &ChosenDecodeKernels().Of<T>();
    } else {
      kernel = &GetAttentionKernel(arguments);
    }
  }

  // Partial results of a decode call in memory: for each head, a DoneCount, then the partial result of each chunk. A
  // head of a single chunk has none: its partial result is in the scratch memory of its thread, before the chunk's own.
  bool HasPartials() const { return decode && schedule.parts() > 1; }
  std::size_t HeadBytes() const { return kCacheLine + Bytes(partial_bytes, schedule.parts()); }
  std::byte* Head(std::byte* partials, std::int64_t head) const {
    return partials + first_partial + HeadBytes() * static_cast<std::size_t>(head);
  }

  const AttentionArgs<T>* args;
  Schedule schedule;
  const AttentionKernel<T>* kernel = nullptr;  // at most one of the two is set
  const DecodeKernel<T>* decode = nullptr;
  std::int64_t first_task = 0;  // in the numbering of all calls' tasks
  std::size_t first_partial = 0, partial_bytes = 0;
};

// Calls with longer tasks come first, and among equals the call that is first in memory.
template <typename T>
void SortByTaskWork(Call<T>* begin, Call<T>* end) {
  const auto key = [](const Call<T>& call) {
    const auto tasks = static_cast<double>(std::max<std::int64_t>(1, call.schedule.tasks()));
    return std::pair(-(call.schedule.work() / tasks), call.args);
  };
  std::sort(begin, end, [&](const Call<T>& a, const Call<T>& b) { return key(a) < key(b); });
}

// Numbers the call's tasks from `tasks` on and lays out its partial results. Returns the scratch bytes of a thread.
template <typename T>
std::size_t Place(Call<T>& call, std::int64_t& tasks, Arena& partials) {
  const Schedule& schedule = call.schedule;
  call.first_task = tasks;
  call.first_partial = partials.used();
  tasks += schedule.tasks();
  if (schedule.tasks() == 0) return 0;
  if (!schedule.decode()) return call.kernel->scratch_bytes(*call.args, schedule.size() * schedule.group());
  call.partial_bytes = call.decode->partial_bytes(*call.args, schedule.size());
  const std::size_t chunk_bytes = call.decode->scratch_bytes(*call.args);
  if (!call.HasPartials()) return call.partial_bytes + chunk_bytes;
  partials.Allocate<std::byte>(call.HeadBytes(), schedule.heads());
  return chunk_bytes;
}

template <typename T>
void RunQueryBlock(const Call<T>& call, std::int64_t task, std::byte* scratch) {
  const Schedule& schedule = call.schedule;
  const std::int64_t kv_heads = call.args->key.shape[1], head = task % schedule.heads();
  // Under causality the last queries keep the most keys: the longest tasks come first.
  const std::int64_t query = (schedule.parts() - 1 - task / schedule.heads()) * schedule.size();
  const std::int64_t query_end = std::min(call.args->query.shape[2], query + schedule.size());
  call.kernel->block(*call.args, {head / kv_heads, head % kv_heads, query, query_end}, scratch);
}

template <typename T>
void RunSmallTask(const Call<T>& call, std::int64_t task, std::byte* scratch) {
  const Schedule& schedule = call.schedule;
  const std::int64_t begin = task * Schedule::kSmallHeads;
  const std::int64_t end = std::min(schedule.heads(), begin + Schedule::kSmallHeads);
  call.decode->small_heads(*call.args, begin, end, scratch);
  Interrupted(schedule.work() / static_cast<double>(schedule.tasks()));
}

// The last chunk of a head to finish combines the partial results of all of them.
template <typename T>
void RunChunk(const Call<T>& call, std::int64_t task, std::byte* partials, std::byte* scratch) {
  const Schedule& schedule = call.schedule;
  const std::int64_t kv_heads = call.args->key.shape[1], key_len = call.args->key.shape[2];
  const std::int64_t head = task / schedule.parts(), part = task % schedule.parts(), begin = part * schedule.size();
  if (!call.HasPartials()) {
    const DecodeChunk chunk{head / kv_heads, head % kv_heads, 0, key_len};
    call.decode->chunk(*call.args, chunk, scratch, scratch + call.partial_bytes);
    if (!Interrupted(0)) call.decode->combine(*call.args, chunk.batch, chunk.kv_head, schedule.size(), scratch);
    return;
  }
  std::byte* const done = call.Head(partials, head);
  std::byte* const partial = done + kCacheLine;
  const DecodeChunk chunk{head / kv_heads, head % kv_heads, begin, std::min(key_len, begin + schedule.size())};
  call.decode->chunk(*call.args, chunk, partial + call.partial_bytes * static_cast<std::size_t>(part), scratch);
  if (reinterpret_cast<DoneCount*>(done)->fetch_add(1, std::memory_order_acq_rel) + 1 < schedule.parts()) return;
  if (Interrupted(0)) return;  // chunks may be incomplete
  call.decode->combine(*call.args, chunk.batch, chunk.kv_head, schedule.size(), partial);
}

template <typename T>
void RunCalls(Call<T>* begin, Call<T>* end) {
  std::int64_t max_tasks = 0;
  double work = 0;
  for (Call<T>* call = begin; call < end; ++call) {
    max_tasks += call->schedule.tasks(), work += call->schedule.work();
  }
  const int max_threads = ThreadsFor(max_tasks, work);
  for (Call<T>* call = begin; call < end; ++call) call->schedule.Divide(max_threads, work);
  SortByTaskWork(begin, end);

  std::int64_t tasks = 0;
  std::size_t scratch_bytes = 0;
  Arena measure(nullptr);
  for (Call<T>* call = begin; call < end; ++call) {
    scratch_bytes = std::max(scratch_bytes, Place(*call, tasks, measure));
  }
  if (tasks == 0) return;
  const int threads = static_cast<int>(std::min<std::int64_t>(max_threads, tasks));
  const Scratch scratch(threads, scratch_bytes);
  std::optional<Scratch> partials_memory;
  if (measure.used() > 0) partials_memory.emplace(1, measure.used());
  std::byte* const partials = partials_memory ? partials_memory->thread(0) : nullptr;
  for (const Call<T>* call = begin; call < end; ++call) {
    for (std::int64_t head = 0; call->HasPartials() && head < call->schedule.heads(); ++head) {
      new (call->Head(partials, head)) DoneCount(0);
    }
  }
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const auto later = [](std::int64_t t, const Call<T>& call) { return t < call.first_task; };
    const Call<T>& call = *(std::upper_bound(begin, end, task, later) - 1);
    if (call.schedule.small()) {
      RunSmallTask(call, task - call.first_task, scratch.thread(thread));
    } else if (call.decode) {
      RunChunk(call, task - call.first_task, partials, scratch.thread(thread));
    } else {
      RunQueryBlock(call, task - call.first_task, scratch.thread(thread));
    }
  });
}

}  // namespace

template <typename T>
void Attention(const AttentionArgs<T>& args) {
  CheckAttention(args);
  if (!args.spec.key_lengths.empty()) return AttentionVarlen(BatchEntries(args));
  Call<T> call(args);
  RunCalls(&call, &call + 1);
}
template void Attention(const AttentionArgs<Float16>&);
template void Attention(const AttentionArgs<BFloat16>&);
template void Attention(const AttentionArgs<float>&);
template void Attention(const AttentionArgs<double>&);

template <typename T>
void AttentionVarlen(const std::vector<AttentionArgs<T>>& calls) {
  for (const AttentionArgs<T>& args : calls) {
    CheckAttention(args);
    if (!args.spec.key_lengths.empty()) throw std::invalid_argument("key_lengths: given for one of several calls");
  }
  std::vector<Call<T>> list(calls.begin(), calls.end());
  RunCalls(list.data(), list.data() + list.size());
}
template void AttentionVarlen(const std::vector<AttentionArgs<Float16>>&);
template void AttentionVarlen(const std::vector<AttentionArgs<BFloat16>>&);
template void AttentionVarlen(const std::vector<AttentionArgs<float>>&);
template void AttentionVarlen(const std::vector<AttentionArgs<double>>&);

}  // namespace headwise
