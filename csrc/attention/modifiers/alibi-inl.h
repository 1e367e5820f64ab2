// ALiBi in attention: score -> score - slope * |i + offset - j| (alibi/score-inl.h).

#if defined(HEADWISE_ATTENTION_MODIFIERS_ALIBI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_ALIBI_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_ALIBI_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_ALIBI_INL_H_
#endif

#include <cstdint>

#include "alibi/score-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
class Alibi {
 public:
  // distance: of the first key of the block from the query, key - query.
  Alibi(T slope, std::int64_t distance) : slope_(slope), distance_(distance) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, std::int64_t j, std::int64_t /*left*/) const {
    return AlibiScore(d, score, hn::Set(d, slope_), hn::Iota(d, static_cast<T>(distance_ + j)));
  }

 private:
  T slope_;
  std::int64_t distance_;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
