#include "base/openmp/processors.h"

#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace headwise {

#ifdef __linux__
int CurrentProcessor() { return sched_getcpu(); }

void LeaveProcessor(int processor, int threads) {
  if (processor < 0 || processor >= CPU_SETSIZE || sched_getcpu() != processor) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;  // more processors than a set has room for
  if (CPU_COUNT(&allowed) < threads) return;
  cpu_set_t others = allowed;
  CPU_CLR(processor, &others);
  if (sched_setaffinity(0, sizeof(others), &others) == 0) sched_setaffinity(0, sizeof(allowed), &allowed);
}
#else
int CurrentProcessor() { return -1; }

void LeaveProcessor(int, int) {}
#endif

void LetStart(const std::atomic<int>& started, int others) {
  // Threads that still spin since the last region start within a microsecond.
  constexpr int kLooks = 1000;
  for (int i = 0; i < kLooks; ++i) {
    if (started.load(std::memory_order_relaxed) >= others) return;
  }
  std::this_thread::yield();
}

}  // namespace headwise
