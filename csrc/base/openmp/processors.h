// Threads of a parallel region on processors of their own.
//
// In a guest of KVM an idle processor looks to Linux like one that the host has taken away (vcpu_is_preempted), so that
// a thread that sleeps is woken on the processor of the one that wakes it: behind that one, which goes on and then
// waits for it in the barrier, until the next tick or two. Attention of 0.4 ms took 7.7 ms then, after a pause of 40
// ms.
#pragma once

#include <atomic>

namespace headwise {

// The processor that this thread runs on; -1 where nobody can tell.
int CurrentProcessor();

// Moves this thread elsewhere if it is on `processor` and there is one for each of `threads`. Where it may be stays as
// it was.
void LeaveProcessor(int processor, int threads);

// For the thread that has opened a region with `others` threads: those that have been woken on its processor start.
void LetStart(const std::atomic<int>& started, int others);

}  // namespace headwise
