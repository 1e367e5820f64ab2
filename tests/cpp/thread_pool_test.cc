// The thread pool by itself: who works on a job, and what ends it. Under ThreadSanitizer the test looks for races.
#include "base/threads/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/interruption.h"
#include "base/parallel.h"
#include "fork.h"
#include "headwise/runtime.h"

namespace headwise::testing {
namespace {

constexpr int kThreads = 4;

// A parallel loop of `tasks` tasks that counts how often each has run.
class Counts {
 public:
  explicit Counts(std::int64_t tasks) : runs_(static_cast<std::size_t>(tasks)) {}

  template <typename Function>
  void Run(const Function& also) {
    ParallelFor(static_cast<std::int64_t>(runs_.size()), StartWorkers(kThreads), [&](std::int64_t task, int thread) {
      ++runs_[static_cast<std::size_t>(task)];
      also(task, thread);
    });
  }

  bool Each(int count) const {
    for (const auto& runs : runs_) {
      if (runs != count) return false;
    }
    return true;
  }

  int total() const {
    int sum = 0;
    for (const auto& runs : runs_) sum += runs;
    return sum;
  }

 private:
  std::vector<std::atomic<int>> runs_;
};

void Nap() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

TEST(ThreadPoolTest, WorkersHelp) {
  std::atomic<int> helped{0};
  Counts counts(100);
  counts.Run([&](std::int64_t, int thread) { helped += thread > 0, Nap(); });
  EXPECT_TRUE(counts.Each(1));
  EXPECT_GT(helped, 0);
}

TEST(ThreadPoolTest, JobsOfManyCallersShareTheWorkers) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 200; ++round) {
        Counts counts(1 + (caller + round) % 50);
        counts.Run([](std::int64_t, int) {});
        if (!counts.Each(1)) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadPoolTest, AJobWithinATaskStaysOnItsThread) {
  std::atomic<int> elsewhere{0};
  Counts inner(3), outer(20);
  outer.Run([&](std::int64_t, int) {
    const std::thread::id here = std::this_thread::get_id();
    if (ThreadsFor(1000, 1e9) != 1) ++elsewhere;
    inner.Run([&](std::int64_t, int thread) { elsewhere += thread != 0 || std::this_thread::get_id() != here; });
  });
  EXPECT_EQ(elsewhere, 0);
  EXPECT_TRUE(outer.Each(1));
  EXPECT_TRUE(inner.Each(20));
}

// The calling thread has no task left, and waits for a worker that would never end by itself.
TEST(ThreadPoolTest, AnInterruptionReachesWorkersThatAreBusy) {
  static std::atomic<bool> worker_is_busy;
  worker_is_busy = false;
  Interruption interruption([](void*) { return worker_is_busy.load(); }, nullptr);
  Counts counts(2);
  const auto run = [&] {
    counts.Run([](std::int64_t, int thread) {
      worker_is_busy = worker_is_busy || thread > 0;
      while (thread > 0 ? !Interrupted(kAnyWork) : !worker_is_busy) Nap();
    });
  };
  EXPECT_THROW(run(), CallInterrupted);
  EXPECT_TRUE(counts.Each(1));
}

TEST(ThreadPoolTest, AfterAnInterruptionNoFurtherTaskStarts) {
  constexpr int kTasks = 1000000;
  Counts counts(kTasks), next(100);
  {
    Interruption interruption([](void*) { return true; }, nullptr);
    EXPECT_THROW(counts.Run([](std::int64_t, int) { Interrupted(kAnyWork), Nap(); }), CallInterrupted);
  }
  EXPECT_LT(counts.total(), kTasks);
  next.Run([](std::int64_t, int) {});
  EXPECT_TRUE(next.Each(1));
}

#ifndef _WIN32
// As a signal handler of Python does that calls os.fork().
TEST(ThreadPoolTest, AForkWithinATaskLosesNoTask) {
  HEADWISE_SKIP_FORK();
  for (int round = 0; round < 5; ++round) {
    pid_t child = -1;
    const auto fork_once = [](void* context) {
      pid_t& pid = *static_cast<pid_t*>(context);
      if (pid < 0) pid = ForkWithLimit();
      return false;
    };
    Counts counts(2000), next(100);
    {
      Interruption interruption(fork_once, &child);
      counts.Run([](std::int64_t, int) {
        Interrupted(kAnyWork);
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      });
    }
    next.Run([](std::int64_t, int) {});
    const bool right = counts.Each(1) && next.Each(1);
    if (child == 0) _exit(right && StartWorkers(kThreads) == kThreads ? 0 : 1);
    EXPECT_TRUE(right);
    ASSERT_GT(child, 0);
    EXPECT_EQ(ExitCode(child), 0);
  }
}
#endif

}  // namespace
}  // namespace headwise::testing
