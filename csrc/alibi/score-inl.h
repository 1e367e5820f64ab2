// ALiBi's one SIMD body (Press, Smith and Lewis 2021, arXiv:2108.12409, section 3), for add_alibi and for attention.

#if defined(HEADWISE_ALIBI_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ALIBI_SCORE_INL_H_
#undef HEADWISE_ALIBI_SCORE_INL_H_
#else
#define HEADWISE_ALIBI_SCORE_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// score - slope * |distance|; distance is key - query.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AlibiScore(D, V score, V slope, V distance) {
  return hn::NegMulAdd(slope, hn::Abs(distance), score);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
