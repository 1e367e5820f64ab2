// What the thread pool needs of the operating system.
#pragma once

namespace headwise {

// Starts a thread that runs `function`, which does not return. False if the system refuses it, for its limits of
// processes, address space or memory. The thread handles no signals of the process, and may run on the processors of
// the main thread, whichever thread starts it. Linux schedules it in short slices, so that it starts soon when it is
// woken.
bool StartWorkerThread(void (*function)());

// The number of processors that such a thread may run on.
int WorkerProcessors();

// The processor that this thread runs on; -1 if unknown.
int CurrentProcessor();

// Moves this thread, a worker, from `processor` to another one that it may run on, if there is one.
void LeaveProcessor(int processor);

// Calls prepare() and parent() before and after a fork, on the thread that forks, and child() in the child.
void AtFork(void (*prepare)(), void (*parent)(), void (*child)());

}  // namespace headwise
