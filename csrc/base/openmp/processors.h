// Spreads the threads of a parallel region over the processors.
//
// In a KVM guest, Linux takes an idle processor for one that the host has preempted (vcpu_is_preempted), so it wakes a
// sleeping thread on the processor of the waking thread. The woken thread then waits for a scheduler tick or two, and
// the waking thread waits for it in the barrier: after a pause of 40 ms, attention of 0.4 ms took 7.7 ms.
#pragma once

#include <atomic>

namespace headwise {

// The processor that this thread runs on; -1 if unknown.
int CurrentProcessor();

// Moves this thread to another processor if it is on `processor` and there is a processor for each of `threads`. The
// thread's affinity stays as it was.
void LeaveProcessor(int processor, int threads);

// For the thread that has opened a region with `others` further threads: yields its processor until they have started.
void LetStart(const std::atomic<int>& started, int others);

}  // namespace headwise
