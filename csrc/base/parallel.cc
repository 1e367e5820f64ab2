#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "base/threads/openmp_limit.h"
#include "base/threads/thread_state.h"
#include "headwise/runtime.h"
#include "testing/hooks.h"

namespace headwise {
namespace {

// Sharing work costs a few µs; it is not worth it below about 20 µs of work on one core.
constexpr double kSerialWork = 2e6;

// No machine has many more processors. Scratch memory is reserved for each thread of a call.
constexpr int kMaxThreads = 1024;

std::atomic<int> num_threads{0};  // 0: not set

}  // namespace

int GetNumThreads() {
  if (ThisThread().job) return 1;
  const int n = num_threads.load(std::memory_order_relaxed);
  return std::min({n > 0 ? n : DefaultThreads(), OpenMPLimit(), kMaxThreads});
}

void SetNumThreads(int n) {
  if (n < 1) throw std::invalid_argument("num_threads: " + std::to_string(n) + ", expected at least 1");
  num_threads = n;
}

int ThreadsFor(std::int64_t tasks, double work) {
  if (tasks < 2) return 1;
  if (work < kSerialWork && !testing::ThreadsForAnyWork()) return 1;
  return StartWorkers(static_cast<int>(std::min<std::int64_t>(tasks, GetNumThreads())));
}

void RunParallel(std::int64_t tasks, int threads, Task task, void* context) {
  Job job(tasks, threads, task, context);
  RunJob(job);
  if (Interrupted(0)) throw CallInterrupted();
}

}  // namespace headwise
