// Dot products of a few queries with a few keys, neither of them packed: the sums of a register tile along the lanes,
// then the sums of lanes. At head_dim 64 the second step, one vector at a time, takes as long as the first; four at a
// time take less than half of it (FourSums). Both add lanes in the same order, that of SumOfLanes on x86.

#if defined(HEADWISE_ATTENTION_DECODE_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_DOTS_INL_H_
#undef HEADWISE_ATTENTION_DECODE_DOTS_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_DOTS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "attention/stored_rows-inl.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Rows that a key is multiplied with while it is in registers, and keys at a time.
constexpr int kDecodeRows = 4;
constexpr int kDecodeKeys = kTileRows / 3;

// Elsewhere SumOfLanes adds lanes in another order, and the last bits of a score must not depend on its tile.
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
template <typename T>
constexpr bool kHasFourSums = std::is_same_v<T, float>;

// Lane i of the result is the sum of the lanes of the i-th vector: the upper half of a vector is added to its lower
// half, again and again, until one lane is left.
template <class D, class V = hn::Vec<D>, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<hn::FixedTag<T, 4>> FourSums(D d, V v0, V v1, V v2, V v3) {
  const auto fold = [&](V low, V high) HWY_ATTR {  // the folded vectors side by side
    return hn::Add(hn::ConcatLowerLower(d, high, low), hn::ConcatUpperUpper(d, high, low));
  };
  if constexpr (hn::MaxLanes(d) > 8) {
    const hn::Half<D> half;
    const auto v01 = fold(v0, v1), v23 = fold(v2, v3);
    return FourSums(half, hn::LowerHalf(half, v01), hn::UpperHalf(half, v01), hn::LowerHalf(half, v23),
                    hn::UpperHalf(half, v23));
  } else if constexpr (hn::MaxLanes(d) == 8) {
    const hn::FixedTag<T, 4> block;
    const auto v01 = fold(v0, v1), v23 = fold(v2, v3);
    const auto pairs = hn::Add(hn::InterleaveLower(d, v01, v23), hn::InterleaveUpper(d, v01, v23));
    const auto sums = hn::Add(pairs, hn::Shuffle1032(pairs));  // v0, v2, ... and v1, v3, ...
    return hn::InterleaveLower(block, hn::LowerHalf(block, sums), hn::UpperHalf(block, sums));
  } else {
    const auto v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
    const auto v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
    return fold(v01, v23);
  }
}

// The sums of lanes of `tile` [4 / kKeys][kKeys] to rows that are kStride apart.
template <class D, int kKeys, int kStride, class V = hn::Vec<D>, typename T = hn::TFromD<D>>
HWY_INLINE void StoreFourSums(D d, const V* tile, Int<kKeys>, Int<kStride>, T* to) {
  static_assert(kKeys == 2 || kKeys == 4);
  const auto sums = FourSums(d, tile[0], tile[1], tile[2], tile[3]);
  if constexpr (kKeys == 4) {
    hn::StoreU(sums, hn::FixedTag<T, 4>(), to);
  } else {
    const hn::FixedTag<T, 2> row;
    hn::StoreU(hn::LowerHalf(row, sums), row, to);
    hn::StoreU(hn::UpperHalf(row, sums), row, to + kStride);
  }
}
#else
template <typename T>
constexpr bool kHasFourSums = false;
#endif

// scores[r * kScoreStride + j] = query_r . key_(first + j) for kRows rows and kKeys keys. Rows of queries end in zeros.
template <int kRows, int kKeys, int kScoreStride, typename T, typename K>
HWY_INLINE void Dots(const T* query, int64_t query_stride, const StoredRows<K>& key, int64_t first, int64_t depth,
                     T* scores) {
  const Tag<T> d;
  constexpr int kTile = kRows * kKeys;
  hn::Vec<Tag<T>> sum[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) sum[i] = hn::Zero(d);
  ForEachVector(d, depth, [&](auto lanes, int64_t k) HWY_ATTR {
    hn::Vec<Tag<T>> keys[kKeys];
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) keys[j] = key.Load(lanes, d, first + j, k);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto q = hn::Load(d, query + r * query_stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) sum[r * kKeys + j] = hn::MulAdd(q, keys[j], sum[r * kKeys + j]);
    }
  });
  if constexpr (kHasFourSums<T> && kTile % 4 == 0 && kKeys > 1) {
#pragma GCC unroll 4
    for (int i = 0; i < kTile; i += 4) {
      StoreFourSums(d, sum + i, Int<kKeys>(), Int<kScoreStride>(), scores + i / kKeys * kScoreStride);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      scores[i / kKeys * kScoreStride + i % kKeys] = hn::GetLane(hn::SumOfLanes(d, sum[i]));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
