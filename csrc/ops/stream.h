// Whether results are written past the caches.
#pragma once

#include <cstdint>

namespace headwise {

// A store that allocates reads the old line first, a third of the traffic of an operation on each element; what is
// larger than the caches is gone from them anyway before somebody reads it. In place there is nothing to save: the
// line has been read. Measured with a third-level cache of 105 MB: 1.2 times as fast from 32 MB on, for softmax.
inline bool WritePastCaches(const void* in, const void* out, double bytes) {
  constexpr double kLarge = 32 << 20;
  return bytes >= kLarge && in != out;
}

}  // namespace headwise
