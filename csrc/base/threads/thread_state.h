// What a thread works on.
#pragma once

#include <atomic>

namespace headwise {

struct Job;
class Interruption;

struct ThreadState {
  Job* job = nullptr;                          // the innermost, of this thread or joined (threads/thread_pool.h)
  const std::atomic<bool>* stopped = nullptr;  // of the call; null: it is not interruptible (interruption.h)
  Interruption* checked = nullptr;             // on the calling thread
  void (*restore)() = nullptr;                 // after a check
};

ThreadState& ThisThread();

// Gives a worker its state, which is not `thread_local`: the first use of such a variable of a shared library calls
// malloc, which reserves 64 MB of address space for each thread, and ends the process if it has no memory.
void SetThisThread(ThreadState& state);

}  // namespace headwise
