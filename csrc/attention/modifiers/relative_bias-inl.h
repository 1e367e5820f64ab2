// Relative bias: score -> score + bias[clip(j - i - offset, -M, M) + M] (Shaw et al. 2018, arXiv:1803.02155,
// section 3.2; Raffel et al. 2020, arXiv:1910.10683, section 2.1). Within a row, the biases of adjacent keys are
// adjacent entries, and the first or the last entry beyond the distance M: no array of all scores is built.

#if defined(HEADWISE_ATTENTION_MODIFIERS_RELATIVE_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_RELATIVE_BIAS_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_RELATIVE_BIAS_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_RELATIVE_BIAS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
class RelativeBiasRow {
 public:
  // key: the first key of the block, minus the position of query 0.
  RelativeBiasRow(const View<const T, 4>& bias, int64_t batch, const Row& row, int64_t key)
      : bias_(bias.at(batch, row.head, row.query)),
        last_(bias.shape[3] - 1),
        first_(key - row.query + bias.shape[3] / 2) {}

  // Of keys j to j + lanes of the block. Keys that do not exist have entries, too.
  template <class D>
  HWY_INLINE hn::Vec<D> Load(D d, int64_t j, int64_t /*left*/) const {
    const int64_t begin = first_ + j, end = begin - 1 + kLanes<T>;
    if (HWY_LIKELY(begin >= 0 && end <= last_)) return hn::LoadU(d, bias_ + begin);
    if (end <= 0) return hn::Set(d, bias_[0]);
    if (begin >= last_) return hn::Set(d, bias_[last_]);
    HWY_ALIGN T entries[kLanes<T>];
    for (int64_t i = 0; i < kLanes<T>; ++i) entries[i] = bias_[std::clamp<int64_t>(begin + i, 0, last_)];
    return hn::Load(d, entries);
  }

 private:
  const T* bias_;
  int64_t last_, first_;  // the last entry; that of the first key of the block, if it were not clipped
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
