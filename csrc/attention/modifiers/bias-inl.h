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

// score -> score + bias, or -inf where the bias is -inf. With kOnlyDrop the bias is not added: after a sum of several
// biases, -inf + inf (NaN) becomes -inf again.
template <typename T, typename B, bool kOnlyDrop>
class AddBias {
 public:
  // bias[0] belongs to the first key of the block; stride 0 or 1.
  // `further`: scores hold another bias, with which the sum may overflow.
  AddBias(const B* bias, int64_t stride, bool further)
      : bias_(stride == 0 ? nullptr : bias), shared_(hn::GetLane(BroadcastWide(Tag<T>(), bias))), further_(further) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, int64_t j, int64_t left) const {
    V bias = hn::Set(d, shared_);
    if (bias_) bias = left >= kLanes<T> ? LoadWide(d, bias_ + j) : FirstLanes{left}.Load(d, bias_ + j);
    const V minus_inf = hn::Set(d, kMinusInf<T>);
    V sum = score;
    if constexpr (!kOnlyDrop) {
      sum = hn::Add(score, bias);
      if (further_) {
        const auto overflow = hn::And(hn::IsInf(sum), hn::And(hn::IsFinite(score), hn::IsFinite(bias)));
        sum = hn::IfThenElse(overflow, hn::CopySign(hn::Set(d, std::numeric_limits<T>::max()), sum), sum);
      }
    }
    return hn::IfThenElse(hn::Eq(bias, minus_inf), minus_inf, sum);
  }

 private:
  const B* bias_;
  T shared_;
  bool further_;
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
