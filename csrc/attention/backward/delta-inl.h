// delta_i = d_output_i . output_i - d_lse_i, and the gradients of the sinks, which need nothing else of a query.

#if defined(HEADWISE_ATTENTION_BACKWARD_DELTA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_DELTA_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_DELTA_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_DELTA_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "attention/backward/products-inl.h"
#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// An output of 0 contributes 0, as that of a query that keeps nothing, whatever its gradient is.
template <typename S>
Accumulator<S> Delta(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients, int64_t batch, int64_t entry,
                     int64_t head, int64_t query) {
  const Tag<Accumulator<S>> d;
  const S* const gradient = gradients.d_output.at(entry, head, query);
  const S* const output = args.output.at(batch, head, query);
  auto sum = hn::Zero(d);
  ForEachVector(d, args.value.shape[3], [&](auto lanes, int64_t i) HWY_ATTR {
    sum = hn::Add(sum, WhereKept(d, lanes.Load(d, output + i), lanes.Load(d, gradient + i)));
  });
  const Accumulator<S> delta = hn::GetLane(hn::SumOfLanes(d, sum));
  return gradients.d_lse ? delta - *gradients.d_lse.at(entry, head, query) : delta;
}

template <typename S>
double SinkGradient(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients, int64_t batch, int64_t entry,
                    int64_t head) {
  using T = Accumulator<S>;
  const T sink = args.spec.sinks[head];
  double sum = 0;
  if (sink == kMinusInf<T>) return sum;
  for (int64_t query = 0; query < args.query.shape[2]; ++query) {
    const T lse = *args.lse.at(batch, head, query);
    const double weight = std::exp(static_cast<double>(sink) - static_cast<double>(lse));
    if (weight != 0) sum -= weight * static_cast<double>(Delta(args, gradients, batch, entry, head, query));
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
