#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/interruption.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "base/stream.h"
#include "headwise/rope.h"
#include "rope/kernel.h"

namespace headwise {
namespace {

// Size of a block of positions: its cosines and sines stay in L1 while the heads that share them are rotated.
constexpr std::int64_t kBlockBytes = 16 << 10;

}  // namespace

template <typename T>
void ApplyRope(View<const T, 4> x, View<const Accumulator<T>, 4> cos, View<const Accumulator<T>, 4> sin,
               bool interleaved, View<T, 4> out) {
  const auto [batch, heads, seq, dim] = x.shape;
  if (dim == 0) return;
  const RopeKernel<T>& kernel = ChosenRopeKernels().Of<T>();
  const auto rotate = interleaved ? kernel.neighbours : kernel.halves;
  // Arrays stored as (batch, seq, heads, dim) are processed in that order: the rows of a kernel call are adjacent.
  const int along = std::abs(x.stride[1]) < std::abs(x.stride[2]) ? 1 : 2;
  const std::int64_t block = std::max<std::int64_t>(1, kBlockBytes / (dim * static_cast<std::int64_t>(sizeof(T))));
  const double bytes = sizeof(T) * static_cast<double>(batch) * static_cast<double>(heads) * static_cast<double>(seq) *
                       static_cast<double>(dim);
  // Half a row is too short for non-temporal stores, so contiguous rows are collected in a buffer and copied together.
  const bool streamed = along == 2 && out.stride[2] == dim && UseNonTemporalStores(x.data, out.data, bytes);
  const auto rows = [&, dim = dim](std::int64_t n, std::int64_t h, std::int64_t s, std::int64_t count, T* buffer) {
    rotate({count, dim / 2, x.at(n, h, s), x.stride[along], cos.at(n, h, s), cos.stride[along], sin.at(n, h, s),
            sin.stride[along], buffer ? buffer : out.at(n, h, s), out.stride[along]});
    if (buffer) kernel.copy(buffer, count * dim, out.at(n, h, s));
  };
  const std::int64_t blocks = (seq + block - 1) / block;
  const double row_work = 3.0 * static_cast<double>(dim);
  const double work = row_work * static_cast<double>(batch) * static_cast<double>(heads) * static_cast<double>(seq);
  const int threads = ThreadsFor(batch * blocks, work);
  std::unique_ptr<const Scratch> scratch;
  if (streamed) scratch = std::make_unique<Scratch>(threads, static_cast<std::size_t>(block * dim) * sizeof(T));
  ParallelFor(batch * blocks, threads, [&, heads = heads, seq = seq](std::int64_t task, int thread) {
    const std::int64_t n = task / blocks, first = task % blocks * block, last = std::min(seq, first + block);
    if (along == 1) {
      for (std::int64_t s = first; s < last && !Interrupted(row_work * heads); ++s) rows(n, 0, s, heads, nullptr);
      return;
    }
    T* const buffer = streamed ? reinterpret_cast<T*>(scratch->thread(thread)) : nullptr;
    for (std::int64_t h = 0; h < heads && !Interrupted(row_work * (last - first)); ++h) {
      rows(n, h, first, last - first, buffer);
    }
    if (streamed) FlushNonTemporalStores();
  });
}

template void ApplyRope(View<const Float16, 4>, View<const float, 4>, View<const float, 4>, bool, View<Float16, 4>);
template void ApplyRope(View<const BFloat16, 4>, View<const float, 4>, View<const float, 4>, bool, View<BFloat16, 4>);
template void ApplyRope(View<const float, 4>, View<const float, 4>, View<const float, 4>, bool, View<float, 4>);
template void ApplyRope(View<const double, 4>, View<const double, 4>, View<const double, 4>, bool, View<double, 4>);

}  // namespace headwise
