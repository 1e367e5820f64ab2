// Which instruction set runs, and on how many threads. State of the process, safe to change between calls.
#pragma once

#include <string>
#include <vector>

namespace headwise {

// Instruction sets that this build has and this processor supports, best first: "avx512", "avx2", "sse4", "neon",
// "scalar", … The first is the default.
std::vector<std::string> ListTargets();
std::string GetTarget();
// Throws std::invalid_argument, naming what is available, for anything not in ListTargets().
void SetTarget(const std::string& name);

// Default: what OpenMP would use (OMP_NUM_THREADS, affinity); 1 in a build without OpenMP.
int GetNumThreads();
// Throws std::invalid_argument for n < 1.
void SetNumThreads(int n);

}  // namespace headwise
