// Whether the system can still start threads.
#pragma once

namespace headwise {

// Threads, at most `wanted` and counting the caller, that can be started for a parallel region. libgomp ends the
// process if the system refuses it a thread, under a limit of processes (a container's pids.max) or of address space.
int SpareThreads(int wanted);

}  // namespace headwise
