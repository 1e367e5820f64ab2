// ALiBi on one row of scores: out_j = score_j - slope * |position - j|.
//
// Distances are counted in the accumulator type: exact up to 2^24 keys in float32, 2^53 in float64. One load, one store
// and three operations per score, so memory bandwidth is the limit. Used by alibi/kernel.cc.

#if defined(HEADWISE_ALIBI_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ALIBI_KERNEL_INL_H_
#undef HEADWISE_ALIBI_KERNEL_INL_H_
#else
#define HEADWISE_ALIBI_KERNEL_INL_H_
#endif

#include <cstdint>

#include "alibi/score-inl.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename T>
void AddAlibiRow(const T* scores, Accumulator<T> slope, std::int64_t position, std::int64_t key_len, T* out,
                 bool streamed) {
  using A = Accumulator<T>;
  const hn::ScalableTag<A> d;
  const auto slopes = hn::Set(d, slope);
  const auto result = [&](auto lanes, std::int64_t j, auto distance) HWY_ATTR {
    lanes.Store(AlibiScore(d, lanes.Load(d, scores + j), slopes, distance), d, out + j);
  };
  if (streamed) {
    ForEachVectorStreamed(d, key_len, out, [&](auto lanes, std::int64_t j) HWY_ATTR {
      result(lanes, j, hn::Iota(d, static_cast<A>(j - position)));
    });
    return;
  }
  const auto step = hn::Set(d, static_cast<A>(hn::Lanes(d)));
  auto distance = hn::Iota(d, static_cast<A>(-position));  // j - position
  ForEachVector(d, key_len, [&](auto lanes, std::int64_t j) HWY_ATTR {
    result(lanes, j, distance);
    distance = hn::Add(distance, step);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
