// Whether results are written past the caches.
#pragma once

#include <cstdint>

#include "hwy/cache_control.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace headwise {

// Whether nothing has been written to the page at `address` since it was allocated.
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

// A store that allocates reads the old line first, a third of the traffic of an operation on each element; what is
// larger than the caches is gone from them anyway before somebody reads it. In place there is nothing to save: the
// line has been read. Nor in new memory: the system has just written zeros there, into the caches. Measured with a
// third-level cache of 105 MB: softmax of 32 MB is 1.16 times as fast, into new memory 0.9 times.
inline bool WritePastCaches(const void* in, const void* out, double bytes) {
  constexpr double kLarge = 32 << 20;
  if (bytes < kLarge || in == out) return false;
  return !Untouched(static_cast<const char*>(out) + static_cast<std::int64_t>(bytes) / 2);
}

// Ends the task of a thread that has written so, before other threads may read.
inline void FinishWritesPastCaches() { hwy::FlushStream(); }

}  // namespace headwise
