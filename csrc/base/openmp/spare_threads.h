// Whether the system has threads to give.
#pragma once

namespace headwise {

// How many threads, of `wanted` and its own among them, a thread can have for a parallel region. libgomp ends the
// process where the system refuses it one: under a limit of processes (a container's pids.max) or of address space.
int SpareThreads(int wanted);

}  // namespace headwise
