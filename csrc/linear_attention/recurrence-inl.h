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
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns whose part of a state stays in the first-level cache between its reading and its update.
template <typename A>
constexpr std::int64_t kStepColumns = 4 * static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<A>()));

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
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t c = 0;
  for (; c + 4 * width <= columns; c += 4 * width) {
    auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    const A* row = state + c;
    for (std::int64_t f = 0; f < features; ++f, row += stride) {
      const auto w = hn::Set(d, weights[f]);
      sum0 = hn::MulAdd(w, hn::LoadU(d, row), sum0);
      sum1 = hn::MulAdd(w, hn::LoadU(d, row + width), sum1);
      sum2 = hn::MulAdd(w, hn::LoadU(d, row + 2 * width), sum2);
      sum3 = hn::MulAdd(w, hn::LoadU(d, row + 3 * width), sum3);
    }
    hn::StoreU(sum0, d, out + c);
    hn::StoreU(sum1, d, out + c + width);
    hn::StoreU(sum2, d, out + c + 2 * width);
    hn::StoreU(sum3, d, out + c + 3 * width);
  }
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
  using V = hn::Vec<decltype(d)>;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, A{1});
  std::int64_t c = 0;
  for (; c + 4 * width <= columns; c += 4 * width) {
    V sums[4], us[4];
    for (int v = 0; v < 4; ++v) {
      sums[v] = hn::Zero(d);
      us[v] = hn::LoadU(d, u + c + v * width);
    }
    for (std::int64_t f = 0; f < features; ++f) {
      const auto keep = decay ? hn::Set(d, decay[f]) : one;
      const auto k_f = hn::Set(d, k[f]), q_f = hn::Set(d, q[f]);
      const A* from = state.from ? state.from + f * state.from_stride + c : nullptr;
      A* to = state.to + f * state.to_stride + c;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        V s = from ? hn::Mul(keep, hn::LoadU(d, from + v * width)) : hn::Zero(d);
        s = hn::MulAdd(k_f, us[v], s);
        hn::StoreU(s, d, to + v * width);
        sums[v] = hn::MulAdd(q_f, s, sums[v]);
      }
    }
    for (int v = 0; v < 4; ++v) hn::StoreU(sums[v], d, out + c + v * width);
  }
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
