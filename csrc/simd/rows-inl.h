// Sweeps over contiguous rows, including the partial vector at the end. 16-bit types (float16-inl.h) are widened when
// loaded and rounded when stored.
//
// Highway's MaskedLoad is an aligned load of a whole vector on processors without masked loads (SSE4, NEON), so the end
// of a row goes through a buffer there: memory beyond the row is never read or written.

#if defined(HEADWISE_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_SIMD_ROWS_INL_H_
#undef HEADWISE_SIMD_ROWS_INL_H_
#else
#define HEADWISE_SIMD_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "simd/float16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Every lane of a vector.
struct AllLanes {
  template <class D, typename T>
  HWY_INLINE hn::Vec<D> Load(D d, const T* from) const {
    return LoadWide(d, from);
  }
  template <class D, typename T>
  HWY_INLINE void Store(hn::Vec<D> v, D d, T* to) const {
    StoreNarrow(v, d, to);
  }
  // v, with `rest` in the lanes outside this set (none here).
  template <class D, class V>
  HWY_INLINE V Or(D, V v, V /*rest*/) const {
    return v;
  }
};

// The first `count` lanes, fewer than the vector has; the other lanes are loaded as 0.
struct FirstLanes {
  std::int64_t count;

  template <class D, typename T>
  HWY_INLINE hn::Vec<D> Load(D d, const T* from) const {
    if constexpr (sizeof(T) < 4) {
      return LoadFirstWide(d, from, static_cast<std::size_t>(count));
    } else {
      return LoadOwn(d, from);
    }
  }
  template <class D, typename T>
  HWY_INLINE void Store(hn::Vec<D> v, D d, T* to) const {
    if constexpr (kIs16Bit<T>) {
      StoreFirstNarrow(v, d, to, static_cast<std::size_t>(count));
    } else {
      StoreOwn(v, d, to);
    }
  }
  template <class D, class V>
  HWY_INLINE V Or(D d, V v, V rest) const {
    return hn::IfThenElse(hn::FirstN(d, static_cast<std::size_t>(count)), v, rest);
  }

 private:
  // For memory of D's own type.
  template <class D, class T = hn::TFromD<D>>
  HWY_INLINE hn::Vec<D> LoadOwn(D d, const T* from) const {
#if !HWY_MEM_OPS_MIGHT_FAULT || HWY_TARGET == HWY_AVX2
    return hn::MaskedLoad(hn::FirstN(d, static_cast<std::size_t>(count)), d, from);
#else
    HWY_ALIGN T buffer[hn::MaxLanes(d)] = {};
    std::memcpy(buffer, from, static_cast<std::size_t>(count) * sizeof(T));
    return hn::Load(d, buffer);
#endif
  }
  template <class D, class T = hn::TFromD<D>>
  HWY_INLINE void StoreOwn(hn::Vec<D> v, D d, T* to) const {
#if !HWY_MEM_OPS_MIGHT_FAULT || HWY_TARGET == HWY_AVX2
    hn::BlendedStore(v, hn::FirstN(d, static_cast<std::size_t>(count)), d, to);
#else
    HWY_ALIGN T buffer[hn::MaxLanes(d)];
    hn::Store(v, d, buffer);
    std::memcpy(to, buffer, static_cast<std::size_t>(count) * sizeof(T));
#endif
  }
};

// Calls visit(lanes, j) for the vectors that cover [0, n): `lanes` of the vector at j are in the range.
template <class D, class Visit>
HWY_INLINE void ForEachVector(D d, std::int64_t n, Visit&& visit) {
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + width <= n; j += width) visit(AllLanes(), j);
  if (j < n) visit(FirstLanes{n - j}, j);
}

// ForEachVector for results written to `to` with non-temporal stores: whole vectors begin at aligned addresses. The
// caller ends with hwy::FlushStream before other threads read them.
struct AllLanesStreamed : AllLanes {
  template <class D, typename T>
  HWY_INLINE void Store(hn::Vec<D> v, D d, T* to) const {
    StreamNarrow(v, d, to);
  }
};
template <class D, class Visit, typename T>
HWY_INLINE void ForEachVectorStreamed(D d, std::int64_t n, const T* to, Visit&& visit) {
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  const auto address = reinterpret_cast<std::uintptr_t>(to);
  if (address % sizeof(T) != 0) return ForEachVector(d, n, visit);
  const auto past = static_cast<std::int64_t>(address / sizeof(T)) & (width - 1);  // elements past an aligned address
  std::int64_t j = past == 0 ? 0 : std::min(n, width - past);
  if (j > 0) visit(FirstLanes{j}, 0);
  for (; j + width <= n; j += width) visit(AllLanesStreamed(), j);
  if (j < n) visit(FirstLanes{n - j}, j);
}

// The maximum lane; may ignore NaN. Not Highway's MaxOfLanes on EMU128, which returns the lowest finite number for
// -inf.
template <class D, class V, class T = hn::TFromD<D>>
HWY_INLINE T MaxLane(D d, V v) {
#if HWY_TARGET == HWY_EMU128
  HWY_ALIGN T lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  T max = lanes[0];
  for (std::size_t i = 1; i < hn::MaxLanes(d); ++i) max = lanes[i] > max ? lanes[i] : max;
  return max;
#else
  return hn::GetLane(hn::MaxOfLanes(d, v));
#endif
}

// The maximum of the row; -inf for an empty row, unspecified for a row with NaN.
template <class D, typename T>
HWY_INLINE hn::TFromD<D> MaxOfRow(D d, const T* x, std::int64_t n) {
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<hn::TFromD<D>>::infinity());
  auto max0 = lowest, max1 = lowest, max2 = lowest, max3 = lowest;
  std::int64_t j = 0;
  for (; j + 4 * width <= n; j += 4 * width) {
    max0 = hn::Max(max0, LoadWide(d, x + j));
    max1 = hn::Max(max1, LoadWide(d, x + j + width));
    max2 = hn::Max(max2, LoadWide(d, x + j + 2 * width));
    max3 = hn::Max(max3, LoadWide(d, x + j + 3 * width));
  }
  ForEachVector(d, n - j, [&](auto lanes, std::int64_t i) HWY_ATTR {
    max0 = hn::Max(max0, lanes.Or(d, lanes.Load(d, x + j + i), lowest));
  });
  return MaxLane(d, hn::Max(hn::Max(max0, max1), hn::Max(max2, max3)));
}

// The sum of term(lanes, j) over the vectors of [0, n). Four accumulators hide the latency of additions; every 64
// rounds they are added to a double, so that a float32 sum of a million terms is accurate to a few units in the last
// place.
template <class D, class Term>
HWY_INLINE double SumOfRow(D d, std::int64_t n, Term&& term) {
  constexpr int kRounds = 64;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  auto sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero;
  const auto all = [&]() HWY_ATTR {
    const auto sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
    return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  };
  double total = 0;
  std::int64_t j = 0;
  for (int round = 0; j + 4 * width <= n; j += 4 * width) {
    if (++round == kRounds) {
      total += all();
      sum0 = sum1 = sum2 = sum3 = zero;
      round = 0;
    }
    sum0 = hn::Add(sum0, term(AllLanes(), j));
    sum1 = hn::Add(sum1, term(AllLanes(), j + width));
    sum2 = hn::Add(sum2, term(AllLanes(), j + 2 * width));
    sum3 = hn::Add(sum3, term(AllLanes(), j + 3 * width));
  }
  ForEachVector(d, n - j, [&](auto lanes, std::int64_t i) HWY_ATTR {
    sum0 = hn::Add(sum0, lanes.Or(d, term(lanes, j + i), zero));
  });
  return total + all();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
