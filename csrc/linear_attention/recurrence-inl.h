// One token of the recurrence on a state of rows [features][columns], in the accumulator type: for single tokens, at
// the speed of the state's memory, and for chunks whose products are not finite.

#if defined(HEADWISE_LINEAR_ATTENTION_RECURRENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_ATTENTION_RECURRENCE_INL_H_
#undef HEADWISE_LINEAR_ATTENTION_RECURRENCE_INL_H_
#else
#define HEADWISE_LINEAR_ATTENTION_RECURRENCE_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of columns of a block, whose part of the state stays in the first or second-level cache between its reading
// and its update. Eight of AVX-512 are whole rows of 128 float32, so that the state comes from memory as one stream.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM
constexpr int kStepVectors = 8;
#else
constexpr int kStepVectors = 4;
#endif
template <typename A>
constexpr std::int64_t kStepColumns = kStepVectors* static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<A>()));

// Calls block(Int<vectors>, column) for blocks of 8 and 4 vectors within [0, columns); the first column behind them.
template <typename A, class Block>
HWY_INLINE std::int64_t ForBlocks(std::int64_t columns, const Block& block) {
  std::int64_t c = 0;
  for (; c + kStepColumns<A> <= columns; c += kStepColumns<A>) block(Int<kStepVectors>(), c);
  if constexpr (kStepVectors > 4) {
    if (c + 4 * kLanes<A> <= columns) {
      block(Int<4>(), c);
      c += 4 * kLanes<A>;
    }
  }
  return c;
}

// The state before and after a token; `from` is null for a state of 0, and may be `to`.
template <typename A>
struct StateRows {
  const A* from;
  std::int64_t from_stride;
  A* to;
  std::int64_t to_stride;
};

// out[c] = sum over the features f of weights[f] * state[f][c].
template <typename A>
HWY_NOINLINE void ReadState(std::int64_t features, std::int64_t columns, const A* state, std::int64_t stride,
                            const A* weights, A* out) {
  const hn::ScalableTag<A> d;
  const std::int64_t c = ForBlocks<A>(columns, [&](auto vectors, std::int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    hn::Vec<decltype(d)> sums[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
    const A* row = state + column;
    for (std::int64_t f = 0; f < features; ++f, row += stride) {
      const auto w = hn::Set(d, weights[f]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] = hn::MulAdd(w, hn::LoadU(d, row + v * kLanes<A>), sums[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, out + column + v * kLanes<A>);
  });
  ForEachVector(d, columns - c, [&](auto lanes, std::int64_t j) HWY_ATTR {
    auto sum = hn::Zero(d);
    const A* row = state + c + j;
    for (std::int64_t f = 0; f < features; ++f, row += stride) {
      sum = hn::MulAdd(hn::Set(d, weights[f]), lanes.Load(d, row), sum);
    }
    lanes.Store(sum, d, out + c + j);
  });
}

// state.to[f] = decay[f] * state.from[f] + k[f] * u, and out = q * state.to, in one sweep. No `decay`: 1.
template <typename A>
HWY_NOINLINE void UpdateState(std::int64_t features, std::int64_t columns, const StateRows<A>& state, const A* decay,
                              const A* k, const A* u, const A* q, A* out) {
  const hn::ScalableTag<A> d;
  const auto one = hn::Set(d, A{1});
  const std::int64_t c = ForBlocks<A>(columns, [&](auto vectors, std::int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    hn::Vec<decltype(d)> sums[kVectors], us[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = hn::Zero(d);
      us[v] = hn::LoadU(d, u + column + v * kLanes<A>);
    }
    for (std::int64_t f = 0; f < features; ++f) {
      const auto keep = decay ? hn::Set(d, decay[f]) : one;
      const auto k_f = hn::Set(d, k[f]), q_f = hn::Set(d, q[f]);
      const A* from = state.from ? state.from + f * state.from_stride + column : nullptr;
      A* to = state.to + f * state.to_stride + column;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        auto s = from ? hn::Mul(keep, hn::LoadU(d, from + v * kLanes<A>)) : hn::Zero(d);
        s = hn::MulAdd(k_f, us[v], s);
        hn::StoreU(s, d, to + v * kLanes<A>);
        sums[v] = hn::MulAdd(q_f, s, sums[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, out + column + v * kLanes<A>);
  });
  ForEachVector(d, columns - c, [&](auto lanes, std::int64_t j) HWY_ATTR {
    auto sum = hn::Zero(d);
    const auto u_c = lanes.Load(d, u + c + j);
    for (std::int64_t f = 0; f < features; ++f) {
      auto s = hn::Zero(d);
      if (state.from) {
        s = lanes.Load(d, state.from + f * state.from_stride + c + j);
        if (decay) s = hn::Mul(hn::Set(d, decay[f]), s);
      }
      s = hn::MulAdd(hn::Set(d, k[f]), u_c, s);
      lanes.Store(s, d, state.to + f * state.to_stride + c + j);
      sum = hn::MulAdd(hn::Set(d, q[f]), s, sum);
    }
    lanes.Store(sum, d, out + c + j);
  });
}

// u = beta * (v - r).
template <typename A>
HWY_NOINLINE void Correct(std::int64_t columns, A beta, const A* v, const A* r, A* u) {
  for (std::int64_t c = 0; c < columns; ++c) u[c] = beta * (v[c] - r[c]);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
