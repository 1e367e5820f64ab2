// The only place that knows of OpenMP.
#pragma once

#include <cstdint>

namespace headwise {

// Threads that ParallelFor would use for `tasks` tasks of about `work` floating-point operations in all: 1 where the
// work is too short to be worth a parallel region, inside somebody else's region, and in a forked child of a process
// that has run one (libgomp's threads do not survive a fork, and waiting for them never ends).
int ThreadsFor(std::int64_t tasks, double work);

using Task = void (*)(void* context, std::int64_t task, int thread);

// task(context, i, thread) for every i in [0, tasks), on `threads` threads, lowest i first. The tasks must not throw;
// `thread` < `threads` names the scratch that a task may use.
void RunParallel(std::int64_t tasks, int threads, Task task, void* context) noexcept;

template <typename Function>
void ParallelFor(std::int64_t tasks, int threads, Function&& function) {
  RunParallel(
      tasks, threads,
      [](void* context, std::int64_t task, int thread) { (*static_cast<Function*>(context))(task, thread); },
      &function);
}

// Calls function(begin, end) for ranges that make up [0, size); `work` is as for ThreadsFor.
template <typename Function>
void ParallelRanges(std::int64_t size, double work, Function&& function) {
  if (size <= 0) return;
  const int threads = ThreadsFor(size, work);
  const std::int64_t tasks = threads == 1 ? 1 : (size < 8 * threads ? size : 8 * threads);
  ParallelFor(tasks, threads,
              [&](std::int64_t task, int) { function(size * task / tasks, size * (task + 1) / tasks); });
}

}  // namespace headwise
