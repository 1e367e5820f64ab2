// Parallel loops, and the number of their threads.
#pragma once

#include <cstdint>

#include "base/interruption.h"
#include "base/threads/thread_pool.h"

namespace headwise {

// Threads to use for `tasks` tasks of about `work` floating-point operations in total. 1 if the work is too short to be
// shared, within a task, and in an application's own OpenMP region.
int ThreadsFor(std::int64_t tasks, double work);

// Calls task(context, i, thread) for every i in [0, tasks) on at most `threads` threads, started in order of i. Tasks
// must not throw. `thread` < `threads` is the index of the thread, and of its scratch. Throws CallInterrupted, when all
// threads have left, if the call has been interrupted (interruption.h): then no further task is started.
void RunParallel(std::int64_t tasks, int threads, Task task, void* context);

template <typename Function>
void ParallelFor(std::int64_t tasks, int threads, Function&& function) {
  RunParallel(
      tasks, threads,
      [](void* context, std::int64_t task, int thread) { (*static_cast<Function*>(context))(task, thread); },
      &function);
}

// Calls function(begin, end) for ranges that partition [begin, end), until the call is interrupted. `work`: of each
// element, as in ThreadsFor.
template <typename Function>
void InterruptibleRanges(std::int64_t begin, std::int64_t end, double work, Function&& function) {
  // Short enough to ask in time, and long enough for prefetching, which ends with a range, to reach nearly all of it.
  constexpr double kRangeWork = 4e6;
  const std::int64_t step = 1 + static_cast<std::int64_t>(kRangeWork / (work > 1e-3 ? work : 1e-3));
  for (std::int64_t i = begin; i < end; i += step) {
    function(i, end - i < step ? end : i + step);
    if (Interrupted(work * static_cast<double>(step))) return;
  }
}

// Calls function(begin, end) for ranges that partition [0, size); `work` as in ThreadsFor.
template <typename Function>
void ParallelRanges(std::int64_t size, double work, Function&& function) {
  if (size <= 0) return;
  const int threads = ThreadsFor(size, work);
  const std::int64_t tasks = threads == 1 ? 1 : (size < 8 * threads ? size : 8 * threads);
  ParallelFor(tasks, threads, [&](std::int64_t task, int) {
    InterruptibleRanges(size * task / tasks, size * (task + 1) / tasks, work / static_cast<double>(size), function);
  });
}

}  // namespace headwise
