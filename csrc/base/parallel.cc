#include "base/parallel.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>

#include "base/interruption.h"
#include "base/openmp/processors.h"
#include "base/openmp/spare_threads.h"
#include "headwise/runtime.h"
#include "testing/hooks.h"

#ifdef _OPENMP
#include <omp.h>

#include <algorithm>
#ifndef _WIN32
#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#endif
#endif

namespace headwise {
namespace {

std::atomic<int> num_threads{0};  // 0: not set, OpenMP's default

#ifdef _OPENMP
// A parallel region costs about 5 µs to enter and leave, and far more where other programs use the same cores; it is
// not worth it below about 20 µs of work on one core.
constexpr double kSerialWork = 2e6;

// libgomp's threads spin for longer than this after a region. A region that starts sooner may find every processor busy
// with them, and must not give up its own (openmp/processors.h).
using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kSpinning{500};

std::atomic<bool> ran_parallel{false};
std::atomic<bool> forked{false};

#ifndef _WIN32
// A child that is forked before headwise's first parallel region may use threads. But other libraries may have run
// regions on the same libgomp (PyTorch's, if PyTorch was loaded first). libgomp keeps a thread pool per thread that has
// opened a region; in the one thread that survives a fork, opening a region on the parent's pool never returns. So a
// helper thread, which has a pool of its own, opens the regions of the surviving thread.
std::thread::id survivor;

void AfterFork() {
  forked = ran_parallel.load();
  survivor = std::this_thread::get_id();
}
[[maybe_unused]] const int fork_guard = pthread_atfork(nullptr, nullptr, AfterFork);

class Opener {
 public:
  Opener() {
    std::thread([this] { Serve(); }).detach();
  }

  // Runs `region` on the helper thread; for one caller at a time.
  void Run(void (*region)(const void*), const void* context) {
    std::unique_lock<std::mutex> lock(mutex_);
    region_ = region, context_ = context;
    changed_.notify_all();
    changed_.wait(lock, [this] { return region_ == nullptr; });
  }

 private:
  void Serve() {
    for (std::unique_lock<std::mutex> lock(mutex_);;) {
      changed_.wait(lock, [this] { return region_ != nullptr; });
      region_(context_);
      region_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  void (*region_)(const void*) = nullptr;
  const void* context_ = nullptr;
};

// Null if the system refuses a thread. Lives as long as the process.
Opener* OpenerOfSurvivor() {
  static Opener* const opener = []() -> Opener* {
    try {
      return new Opener;
    } catch (const std::exception&) {
      return nullptr;
    }
  }();
  return opener;
}
#endif

// Asks for interruptions until `count` is `all`.
void WaitUntil(const std::atomic<int>& count, int all) {
  for (int i = 0; count.load(std::memory_order_relaxed) < all; ++i) {
    Interrupted(kAnyWork);
    if (i > 1000) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Runs `region` on a thread that may open a parallel region; false if there is none.
template <typename Function>
bool RunWhereRegionsOpen(const Function& region) {
#ifndef _WIN32
  if (std::this_thread::get_id() == survivor) {
    Opener* const opener = OpenerOfSurvivor();
    if (opener) opener->Run([](const void* context) { (*static_cast<const Function*>(context))(); }, &region);
    return opener != nullptr;
  }
#endif
  region();
  return true;
}
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
  if (work < kSerialWork && !testing::ThreadsForAnyWork()) return 1;
  return SpareThreads(static_cast<int>(std::min<std::int64_t>(tasks, GetNumThreads())));
#else
  (void)tasks, (void)work;
  return 1;
#endif
}

namespace {

// Tasks report their work themselves; this is for those that are too short to.
constexpr double kTaskWork = 1e5;

void RunTasks(std::int64_t tasks, int threads, Task task, void* context) {
#ifdef _OPENMP
  if (threads > 1) {
    ran_parallel.store(true, std::memory_order_relaxed);
    const StopFlag stopped = CurrentStopFlag();
    const auto region = [&] {
      thread_local Clock::time_point ended;  // end of this thread's last region; its team spins before it sleeps
      const int processor = Clock::now() - ended > kSpinning ? CurrentProcessor() : -1;
      std::atomic<int> started{0}, left{0};
#pragma omp parallel num_threads(threads)
      {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const JoinCall joined(stopped);
        if (thread != 0) {
          started.fetch_add(1, std::memory_order_relaxed);
          LeaveProcessor(processor, team);
        } else if (processor >= 0) {
          LetStart(started, team - 1);
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (std::int64_t i = 0; i < tasks; ++i) {
          if (!Interrupted(kTaskWork)) task(context, i, thread);
        }
        left.fetch_add(1, std::memory_order_relaxed);
        if (thread == 0 && stopped) WaitUntil(left, team);
      }
      ended = Clock::now();
    };
    if (RunWhereRegionsOpen(region)) return;
  }
#else
  (void)threads;
#endif
  for (std::int64_t i = 0; i < tasks && !Interrupted(kTaskWork); ++i) task(context, i, 0);
}

}  // namespace

void RunParallel(std::int64_t tasks, int threads, Task task, void* context) {
  RunTasks(tasks, threads, task, context);
  if (Interrupted(0)) throw CallInterrupted();
}

}  // namespace headwise
