// Whether results are written with non-temporal (streaming) stores, which bypass the caches.
#pragma once

#include <cstdint>

#include "hwy/cache_control.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace headwise {

// Whether the page at `address` has not been written since it was allocated.
inline bool Untouched([[maybe_unused]] const void* address) {
#ifdef __linux__
  const auto page_size = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char resident = 1;
  void* const page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(address) / page_size * page_size);
  return mincore(page, 1, &resident) == 0 && (resident & 1) == 0;
#else
  return false;
#endif
}

// An ordinary store reads the line first, a third of the memory traffic of an elementwise operation, and a result
// larger than the caches is evicted before it is read. Non-temporal stores save nothing in place, where the line has
// been read already, nor in new memory, where the system has just written zeros into the caches. Measured with an L3
// cache of 105 MB: softmax of 32 MB is 1.16 times as fast, and 0.9 times as fast into new memory.
inline bool UseNonTemporalStores(const void* in, const void* out, double bytes) {
  constexpr double kLarge = 32 << 20;
  if (bytes < kLarge || in == out) return false;
  return !Untouched(static_cast<const char*>(out) + static_cast<std::int64_t>(bytes) / 2);
}

// To be called by each thread after its last non-temporal store, before other threads read the results.
inline void FlushNonTemporalStores() { hwy::FlushStream(); }

}  // namespace headwise
