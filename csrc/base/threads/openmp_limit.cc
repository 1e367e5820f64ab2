#include "base/threads/openmp_limit.h"

#include <algorithm>
#include <limits>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace headwise {

#ifdef _OPENMP
namespace {
const int at_load = omp_get_max_threads();
}  // namespace

int DefaultThreads() { return std::max(1, omp_get_max_threads()); }

int OpenMPLimit() {
  if (omp_in_parallel()) return 1;
  const int now = omp_get_max_threads();
  return std::max(1, std::min(now == at_load ? std::numeric_limits<int>::max() : now, omp_get_thread_limit()));
}
#else
int DefaultThreads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

int OpenMPLimit() { return std::numeric_limits<int>::max(); }
#endif

}  // namespace headwise
