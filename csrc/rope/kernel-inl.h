// Rotary embedding of rows: (a, b) -> (a cos - b sin, a sin + b cos) for each pair of a row.
//
// Six operations per six elements moved, so the limit is memory bandwidth, or cache bandwidth if heads share cosines
// and sines. Used by rope/kernel.cc.

#if defined(HEADWISE_ROPE_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ROPE_KERNEL_INL_H_
#undef HEADWISE_ROPE_KERNEL_INL_H_
#else
#define HEADWISE_ROPE_KERNEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "rope/kernel.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// a, b <- a cos - b sin, a sin + b cos.
template <class V>
HWY_INLINE void Rotate(V& a, V& b, V cos, V sin) {
  const V rotated = hn::MulSub(a, cos, hn::Mul(b, sin));
  b = hn::MulAdd(a, sin, hn::Mul(b, cos));
  a = rotated;
}

template <typename T>
void RotateHalves(const RopeRows<T>& rows) {
  const hn::ScalableTag<Accumulator<T>> d;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const T* const x = rows.x + r * rows.x_stride;
    const Accumulator<T>* const cos = rows.cos + r * rows.cos_stride;
    const Accumulator<T>* const sin = rows.sin + r * rows.sin_stride;
    T* const out = rows.out + r * rows.out_stride;
    ForEachVector(d, rows.pairs, [&](auto lanes, std::int64_t i) HWY_ATTR {
      auto a = lanes.Load(d, x + i), b = lanes.Load(d, x + rows.pairs + i);
      Rotate(a, b, lanes.Load(d, cos + i), lanes.Load(d, sin + i));
      lanes.Store(a, d, out + i);
      lanes.Store(b, d, out + rows.pairs + i);
    });
  }
}

template <typename T>
void RotateNeighbours(const RopeRows<T>& rows) {
  const hn::ScalableTag<Accumulator<T>> d;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const T* const x = rows.x + r * rows.x_stride;
    const Accumulator<T>* const cos = rows.cos + r * rows.cos_stride;
    const Accumulator<T>* const sin = rows.sin + r * rows.sin_stride;
    T* const out = rows.out + r * rows.out_stride;
    std::int64_t i = 0;
    for (; i + width <= rows.pairs; i += width) {
      hn::Vec<decltype(d)> a, b;
      LoadInterleavedWide(d, x + 2 * i, a, b);
      Rotate(a, b, hn::LoadU(d, cos + i), hn::LoadU(d, sin + i));
      StoreInterleavedNarrow(a, b, d, out + 2 * i);
    }
    if (i < rows.pairs) {
      const FirstLanes lanes{rows.pairs - i};
      const std::size_t bytes = 2 * static_cast<std::size_t>(lanes.count) * sizeof(T);
      HWY_ALIGN T end[2 * hn::MaxLanes(d)] = {};
      std::memcpy(end, x + 2 * i, bytes);
      hn::Vec<decltype(d)> a, b;
      LoadInterleavedWide(d, end, a, b);
      Rotate(a, b, lanes.Load(d, cos + i), lanes.Load(d, sin + i));
      StoreInterleavedNarrow(a, b, d, end);
      std::memcpy(out + 2 * i, end, bytes);
    }
  }
}

template <typename T>
void CopyNonTemporal(const T* from, std::int64_t n, T* to) {
  const hn::ScalableTag<Accumulator<T>> d;
  ForEachVectorStreamed(d, n, to,
                        [&](auto lanes, std::int64_t i) HWY_ATTR { lanes.Store(lanes.Load(d, from + i), d, to + i); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
