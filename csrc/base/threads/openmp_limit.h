// OpenMP's numbers of threads. headwise runs on threads of its own (thread_pool.h), and takes from OpenMP only the
// limits that users set.
#pragma once

namespace headwise {

// The number of threads if headwise's own is not set: OpenMP's (OMP_NUM_THREADS, processor affinity), or the number of
// processors in a build without OpenMP.
int DefaultThreads();

// The max number of threads of a call from this thread, as far as OpenMP knows of one: OMP_THREAD_LIMIT; 1 in a
// parallel region; and the number that omp_set_num_threads or threadpoolctl has set for this thread, if it is not the
// one that was set when headwise was loaded.
int OpenMPLimit();

}  // namespace headwise
