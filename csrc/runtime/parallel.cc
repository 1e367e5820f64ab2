#include "runtime/parallel.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "headwise/runtime.h"

#ifdef _OPENMP
#include <omp.h>

#include <algorithm>
#ifndef _WIN32
#include <pthread.h>
#endif
#endif

namespace headwise {
namespace {

std::atomic<int> num_threads{0};  // 0: not set, OpenMP's default
std::atomic<bool> threads_for_any_work{false};

#ifdef _OPENMP
// A parallel region costs about 5 µs to enter and leave, and far more where other programs want the same cores; below
// some 20 µs of work on one core it does not pay.
constexpr double kSerialWork = 2e6;

std::atomic<bool> ran_parallel{false};
std::atomic<bool> forked{false};

#ifndef _WIN32
// A child forked before the first parallel region starts its own pool and is as good as any process.
[[maybe_unused]] const int fork_guard = pthread_atfork(nullptr, nullptr, [] { forked = ran_parallel.load(); });
#endif
#endif

}  // namespace

int GetNumThreads() {
  const int n = num_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
#ifdef _OPENMP
  return std::max(1, omp_get_max_threads());
#else
  return 1;
#endif
}

void SetNumThreads(int n) {
  if (n < 1) throw std::invalid_argument("num_threads: " + std::to_string(n) + ", expected at least 1");
  num_threads = n;
}

int ThreadsFor(std::int64_t tasks, double work) {
#ifdef _OPENMP
  if (tasks < 2 || forked.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
  if (work < kSerialWork && !threads_for_any_work.load(std::memory_order_relaxed)) return 1;
  return static_cast<int>(std::min<std::int64_t>(tasks, GetNumThreads()));
#else
  (void)tasks, (void)work;
  return 1;
#endif
}

void SetThreadsForAnyWork(bool on) { threads_for_any_work.store(on); }

void RunParallel(std::int64_t tasks, int threads, Task task, void* context) noexcept {
#ifdef _OPENMP
  if (threads > 1) {
    ran_parallel.store(true, std::memory_order_relaxed);
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t i = 0; i < tasks; ++i) task(context, i, thread);
    }
    return;
  }
#else
  (void)threads;
#endif
  for (std::int64_t i = 0; i < tasks; ++i) task(context, i, 0);
}

}  // namespace headwise
