// The threads that tasks run on: the calling thread, and workers that all calls of the process share.
//
// The calling thread always runs tasks of its own job, and it waits only for workers that have joined the job. A worker
// that wakes up late, or never started, therefore costs its help and nothing else.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/interruption.h"

namespace headwise {

// Calls of `task` are independent of each other. `thread` is the index of the thread within the job.
using Task = void (*)(void* context, std::int64_t task, int thread);

// The tasks of one call. It lives on the stack of the calling thread.
struct Job {
  Job(std::int64_t task_count, int thread_count, Task function, void* argument)
      : tasks(task_count), threads(thread_count), task(function), context(argument) {}

  const std::int64_t tasks;
  const int threads;  // at most this many work on the job, the calling thread among them
  const Task task;
  void* const context;
  std::atomic<std::int64_t> next{0};  // the task that starts next
  std::atomic<int> working{0};        // workers that have joined and not left

  // The other members are the pool's.
  StopFlag stopped = nullptr;  // of the call (interruption.h)
  Job* outer = nullptr;        // the job that this thread was working on before
  Job* following = nullptr;    // in the list of open jobs
  int joined = 1;              // threads that have an index
  bool shared = false;         // workers may have joined
  bool open = false;           // workers may join
  bool awaited = false;        // the calling thread sleeps until the workers have left
};

// Threads, at most `wanted` and counting the caller, that the system provides. Starts workers that are missing. A
// system that refuses a thread is asked again after a second at the earliest.
int StartWorkers(int wanted);

// Runs the tasks of the job, started in order, and returns when all have ended, or the call is interrupted and all
// threads have left it. A job within a task of another job runs on the calling thread alone.
void RunJob(Job& job) noexcept;

// The processors that workers run on instead of those of the main thread, for a process whose main thread was confined
// to one of them by an OpenMP library. For workers that start later.
void SetWorkerProcessors(const std::vector<int>& processors);

}  // namespace headwise
