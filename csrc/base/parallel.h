// Parallel loops. The only interface to OpenMP, together with base/openmp.
#pragma once

#include <cstdint>

namespace headwise {

// Threads to use for `tasks` tasks of about `work` floating-point operations in total. 1 if the work is too short for a
// parallel region, inside an application's own parallel region, and in a forked child of a process that has run a
// region (libgomp's threads do not survive a fork, and waiting for them never ends).
int ThreadsFor(std::int64_t tasks, double work);

using Task = void (*)(void* context, std::int64_t task, int thread);

// Calls task(context, i, thread) for every i in [0, tasks) on `threads` threads, started in order of i. Tasks must not
// throw. `thread` < `threads` is the index of the thread, and of its scratch.
void RunParallel(std::int64_t tasks, int threads, Task task, void* context) noexcept;

template <typename Function>
void ParallelFor(std::int64_t tasks, int threads, Function&& function) {
  RunParallel(
      tasks, threads,
      [](void* context, std::int64_t task, int thread) { (*static_cast<Function*>(context))(task, thread); },
      &function);
}

// Calls function(begin, end) for ranges that partition [0, size); `work` as in ThreadsFor.
template <typename Function>
void ParallelRanges(std::int64_t size, double work, Function&& function) {
  if (size <= 0) return;
  const int threads = ThreadsFor(size, work);
  const std::int64_t tasks = threads == 1 ? 1 : (size < 8 * threads ? size : 8 * threads);
  ParallelFor(tasks, threads,
              [&](std::int64_t task, int) { function(size * task / tasks, size * (task + 1) / tasks); });
}

}  // namespace headwise
