// Additive biases, in the accumulator type or in a 16-bit type. A bias of -inf drops its key. A sum of finite biases
// stays finite: two of the lowest number, as many libraries mask keys, would otherwise drop every key of a row.

#if defined(HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#endif

#include <cstdint>
#include <limits>
#include <variant>

#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

enum class BiasStep {
  kFirst,    // score + bias
  kFurther,  // score + bias, where the score holds another bias, with which the sum may overflow
  kDrop      // score; after a sum of several biases, -inf + inf (NaN) becomes -inf again
};

// score -> the result of kStep, or -inf where the bias is -inf.
template <typename T, typename B, BiasStep kStep>
class AddBias {
 public:
  // bias[0] belongs to the first key of the block; stride 0 or 1.
  AddBias(const B* bias, int64_t stride)
      : bias_(stride == 0 ? nullptr : bias), shared_(hn::GetLane(BroadcastWide(Tag<T>(), bias))) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, int64_t j, int64_t left) const {
    V bias = hn::Set(d, shared_);
    if (bias_) bias = left >= kLanes<T> ? LoadWide(d, bias_ + j) : FirstLanes{left}.Load(d, bias_ + j);
    const V minus_inf = hn::Set(d, kMinusInf<T>);
    V sum = score;
    if constexpr (kStep != BiasStep::kDrop) sum = hn::Add(score, bias);
    if constexpr (kStep == BiasStep::kFurther) {
      const V max = hn::Set(d, std::numeric_limits<T>::max());
      // A NaN makes the sum NaN, whichever operand Max returns.
      const auto finite = hn::Le(hn::Max(hn::Abs(score), hn::Abs(bias)), max);
      sum = hn::IfThenElse(hn::And(hn::Gt(hn::Abs(sum), max), finite), hn::CopySign(max, sum), sum);
    }
    return hn::IfThenElse(hn::Eq(bias, minus_inf), minus_inf, sum);
  }

 private:
  const B* bias_;
  T shared_;
};

// visit(pointer, stride) of the biases for one row of keys, whatever their type.
template <typename Stored, class Visit>
HWY_INLINE void ForEachBias(const AttentionArgs<Stored>& args, int64_t batch, const Row& row, int64_t key_begin,
                            const Visit& visit) {
  for (const Bias<Stored>& bias : args.spec.bias) {
    const auto row_of = [&](const auto& view)
                            HWY_ATTR { visit(view.at(batch, row.head, row.query, key_begin), view.stride[3]); };
    if (const auto* accumulator = std::get_if<0>(&bias)) row_of(*accumulator);
    if constexpr (kIs16Bit<Stored>) {
      if (const auto* stored = std::get_if<1>(&bias)) row_of(*stored);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
