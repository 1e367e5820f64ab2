// Additive biases, in the accumulator type or in a 16-bit type, and relative biases (relative_bias-inl.h). A bias of
// -inf drops its key. A sum of finite biases stays finite: two of the lowest number, as many libraries mask keys, would
// otherwise drop every key of a row.

#if defined(HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_BIAS_INL_H_
#endif

#include <cstdint>
#include <limits>
#include <variant>

#include "attention/modifiers/relative_bias-inl.h"
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

// A bias for each key of a row, of type B, or one for all keys.
template <typename T, typename B>
class BiasRow {
 public:
  // bias[0] belongs to the first key of the block; stride 0 or 1.
  BiasRow(const B* bias, int64_t stride)
      : bias_(stride == 0 ? nullptr : bias), shared_(hn::GetLane(BroadcastWide(Tag<T>(), bias))) {}

  // Of keys j to j + lanes of the block, `left` of which exist.
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, int64_t j, int64_t left) const {
    if (!bias_) return hn::Set(d, shared_);
    if (left < kLanes<T>) return FirstLanes{left}.Load(d, bias_ + j);
    return LoadWide(d, bias_ + j);
  }

 private:
  const B* bias_;
  T shared_;
};

// score -> the result of kStep, or -inf where the bias is -inf.
template <typename T, class BiasOfRow, BiasStep kStep>
class AddBias {
 public:
  explicit AddBias(const BiasOfRow& row) : row_(row) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, int64_t j, int64_t left) const {
    const V bias = row_.Load(d, j, left);
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
  const BiasOfRow row_;
};

// visit(row) of the biases for one row of keys, whatever their type; the relative bias is the last.
template <typename Stored, class Visit>
HWY_INLINE void ForEachBias(const AttentionArgs<Stored>& args, int64_t batch, const Row& row, int64_t key_begin,
                            const Visit& visit) {
  using T = Accumulator<Stored>;
  for (const Bias<Stored>& bias : args.spec.bias) {
    const auto row_of = [&](const auto& view) HWY_ATTR {
      const auto* first = view.at(batch, row.head, row.query, key_begin);
      visit(BiasRow<T, std::decay_t<decltype(*first)>>(first, view.stride[3]));
    };
    if (const auto* accumulator = std::get_if<0>(&bias)) row_of(*accumulator);
    if constexpr (kIs16Bit<Stored>) {
      if (const auto* stored = std::get_if<1>(&bias)) row_of(*stored);
    }
  }
  if (args.spec.relative_bias) {
    visit(RelativeBiasRow<T>(args.spec.relative_bias, batch, row, key_begin - args.spec.offset));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
