// The instruction set and the number of threads. Process-wide state, which may be changed between calls.
#pragma once

#include <string>
#include <vector>

namespace headwise {

// The targets (instruction sets) that this build contains and this processor supports, best first; the first is the
// default. x86-64: "avx512_amx", "avx512_bf16", "avx512", "avx2", "sse4", and "sse2" with newer versions of Highway;
// Arm: "neon"; portable C++: "scalar". avx512_amx and avx512_bf16 are avx512 with bf16 matrix products (precision.h).
std::vector<std::string> ListTargets();
std::string GetTarget();
// Throws std::invalid_argument for a name that is not in ListTargets(), and for avx512_amx where the system refuses AMX
// to the process.
void SetTarget(const std::string& name);

// The threads that a call from this thread may use. Default: OpenMP's (OMP_NUM_THREADS, processor affinity), or the
// number of processors in a build without OpenMP. A lower number that omp_set_num_threads has set for this thread wins.
int GetNumThreads();
// Throws std::invalid_argument for n < 1.
void SetNumThreads(int n);

}  // namespace headwise
