#include "base/openmp/spare_threads.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace headwise {

// Starts as many threads as the region would, once for each thread that opens regions and again if more are wanted.
// Their stacks are then reused by libgomp's threads.
int SpareThreads(int wanted) {
  thread_local int had = 1;
  if (wanted <= had) return wanted;
  std::vector<std::thread> threads;
  {
    std::mutex all_started;  // all threads must exist at the same time
    const std::lock_guard<std::mutex> hold(all_started);
    try {
      threads.reserve(static_cast<std::size_t>(wanted));
      for (int i = 1; i < wanted; ++i) {
        threads.emplace_back([&all_started] { const std::lock_guard<std::mutex> wait(all_started); });
      }
    } catch (const std::exception&) {  // no further thread, or no memory for one
    }
  }
  for (std::thread& thread : threads) thread.join();
  const int got = static_cast<int>(threads.size()) + 1;
  if (got == wanted) had = got;
  return got;
}

}  // namespace headwise
