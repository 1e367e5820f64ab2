#include "headwise/rope.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/rope.h"
#include "runtime/parallel.h"

namespace headwise {
namespace {

// Cosines and sines of a block of positions stay in the first-level cache while the heads that share them go by.
constexpr std::int64_t kBlockBytes = 16 << 10;

template <typename T>
void Run(View<const T, 4> x, View<const T, 4> cos, View<const T, 4> sin, bool interleaved, View<T, 4> out) {
  const auto [batch, heads, seq, dim] = x.shape;
  if (dim == 0) return;
  const RopeKernel<T>& kernel = GetRopeKernel<T>();
  const auto rotate = interleaved ? kernel.neighbours : kernel.halves;
  // (batch, seq, heads, dim) in memory is walked in that order: the rows of a call are those close together.
  const int along = std::abs(x.stride[1]) < std::abs(x.stride[2]) ? 1 : 2;
  const auto rows = [&, dim = dim](std::int64_t n, std::int64_t h, std::int64_t s, std::int64_t count) {
    rotate({count, dim / 2, x.at(n, h, s), x.stride[along], cos.at(n, h, s), cos.stride[along], sin.at(n, h, s),
            sin.stride[along], out.at(n, h, s), out.stride[along]});
  };
  const std::int64_t block = std::max<std::int64_t>(1, kBlockBytes / (dim * static_cast<std::int64_t>(sizeof(T))));
  const std::int64_t blocks = (seq + block - 1) / block;
  const double work = 3.0 * static_cast<double>(batch) * static_cast<double>(heads) * static_cast<double>(seq) *
                      static_cast<double>(dim);
  ParallelRanges(batch * blocks, work, [&, heads = heads, seq = seq](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t n = task / blocks, first = task % blocks * block, last = std::min(seq, first + block);
      if (along == 1) {
        for (std::int64_t s = first; s < last; ++s) rows(n, 0, s, heads);
      } else {
        for (std::int64_t h = 0; h < heads; ++h) rows(n, h, first, last - first);
      }
    }
  });
}

}  // namespace

void ApplyRope(View<const float, 4> x, View<const float, 4> cos, View<const float, 4> sin, bool interleaved,
               View<float, 4> out) {
  Run(x, cos, sin, interleaved, out);
}
void ApplyRope(View<const double, 4> x, View<const double, 4> cos, View<const double, 4> sin, bool interleaved,
               View<double, 4> out) {
  Run(x, cos, sin, interleaved, out);
}

}  // namespace headwise
