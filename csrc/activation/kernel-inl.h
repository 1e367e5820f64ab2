// Activations of contiguous elements, with the products of their gated forms, and the same backward. Blocks go through
// buffers in the first-level cache: function values are computed for whole vectors of the accumulator type, then
// multiplied, rounded and stored. So each function is compiled once per accumulator type, and all else once per element
// type. About 50 operations per vector (gelu) leave memory bandwidth as the limit. Used by activation/kernel.cc.

#if defined(HEADWISE_ACTIVATION_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ACTIVATION_KERNEL_INL_H_
#undef HEADWISE_ACTIVATION_KERNEL_INL_H_
#else
#define HEADWISE_ACTIVATION_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "activation/functions-inl.h"
#include "headwise/activation.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements of a block; whole vectors and whole cache lines.
constexpr std::int64_t kActivationBlock = 512;

// f(x) and, if there is a buffer for it, f'(x), for n elements rounded up to whole vectors.
template <typename A>
using ActivationValues = void (*)(const A* x, std::int64_t n, A* value, A* slope);

template <class Function, typename A>
void ValuesOf(const A* x, std::int64_t n, A* value, A* slope) {
  const hn::ScalableTag<A> d;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  auto v = hn::Zero(d), s = hn::Zero(d);
  if (slope) {
    for (std::int64_t j = 0; j < n; j += width) {
      Function::template Apply<true>(d, hn::LoadU(d, x + j), v, s);
      hn::Store(v, d, value + j);
      hn::Store(s, d, slope + j);
    }
  } else {
    for (std::int64_t j = 0; j < n; j += width) {
      Function::template Apply<false>(d, hn::LoadU(d, x + j), v, s);
      hn::Store(v, d, value + j);
    }
  }
}

template <typename A>
HWY_INLINE ActivationValues<A> ValuesOf(Activation f) {
  static constexpr ActivationValues<A> kValues[] = {&ValuesOf<Gelu, A>, &ValuesOf<GeluTanh, A>, &ValuesOf<Silu, A>};
  return kValues[static_cast<int>(f)];
}

// Elements of the accumulator type from n of x on, up to whole vectors: x itself, or a copy in `buffer`.
template <typename T>
HWY_INLINE const Accumulator<T>* WholeVectors(const T* x, std::int64_t n, Accumulator<T>* buffer) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  if constexpr (!kIs16Bit<T>) {
    if (n % width == 0) return x;
  }
  ForEachVector(d, n, [&](auto lanes, std::int64_t j) HWY_ATTR { hn::Store(lanes.Load(d, x + j), d, buffer + j); });
  return buffer;
}

// Calls visit(i, size) for blocks of [0, n). If `streamed`, all but the first begin at whole cache lines of `out`.
template <typename T, class Visit>
HWY_INLINE void ForEachBlock(std::int64_t n, const T* out, bool streamed, Visit&& visit) {
  constexpr std::uintptr_t kLine = 64;
  const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) % kLine / sizeof(T));
  std::int64_t size = kActivationBlock - (streamed ? past : 0);
  for (std::int64_t i = 0; i < n; i += size, size = kActivationBlock) visit(i, std::min(size, n - i));
}

template <class D, typename T, class Visit>
HWY_INLINE void ForEachVectorOf(D d, std::int64_t n, const T* out, bool streamed, Visit&& visit) {
  if (streamed) {
    ForEachVectorStreamed(d, n, out, visit);
  } else {
    ForEachVector(d, n, visit);
  }
}

template <typename T>
void ActivationForward(Activation f, const T* x, const T* up, std::int64_t n, T* out, bool streamed) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  HWY_ALIGN A wide[kActivationBlock], value[kActivationBlock];
  const ActivationValues<A> values = ValuesOf<A>(f);
  ForEachBlock(n, out, streamed, [&](std::int64_t i, std::int64_t size) HWY_ATTR {
    values(WholeVectors(x + i, size, wide), size, value, nullptr);
    ForEachVectorOf(d, size, out + i, streamed, [&](auto lanes, std::int64_t j) HWY_ATTR {
      const auto v = lanes.Load(d, value + j);
      lanes.Store(up ? hn::Mul(v, lanes.Load(d, up + i + j)) : v, d, out + i + j);
    });
  });
}

template <typename T>
void ActivationBackward(Activation f, const T* d_out, const T* x, const T* up, std::int64_t n, T* d_x, T* d_up,
                        bool streamed) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  HWY_ALIGN A wide[kActivationBlock], value[kActivationBlock], slope[kActivationBlock];
  const ActivationValues<A> values = ValuesOf<A>(f);
  ForEachBlock(n, d_x, streamed, [&](std::int64_t i, std::int64_t size) HWY_ATTR {
    values(WholeVectors(x + i, size, wide), size, value, slope);
    if (up) {
      // Before d_x, which may be d_out.
      ForEachVectorOf(d, size, d_up + i, streamed, [&](auto lanes, std::int64_t j) HWY_ATTR {
        const auto v = lanes.Load(d, value + j);
        lanes.Store(hn::Mul(lanes.Load(d, d_out + i + j), v), d, d_up + i + j);
      });
    }
    ForEachVectorOf(d, size, d_x + i, streamed, [&](auto lanes, std::int64_t j) HWY_ATTR {
      const auto g = lanes.Load(d, d_out + i + j), s = lanes.Load(d, slope + j);
      lanes.Store(hn::Mul(up ? hn::Mul(g, lanes.Load(d, up + i + j)) : g, s), d, d_x + i + j);
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
