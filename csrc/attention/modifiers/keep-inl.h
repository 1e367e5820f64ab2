// Keep-masks: bytes, of which 0 drops a key. What is dropped becomes -inf by selection and never by arithmetic, so that
// NaN ends here. Dropout's mask has the same format (ApplyDropout).

#if defined(HEADWISE_ATTENTION_MODIFIERS_KEEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_KEEP_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_KEEP_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_KEEP_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/modifiers/window-inl.h"
#include "headwise/attention.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Keys of a block: 1 KB per score row.
template <typename T>
constexpr int kKeyBlock = 1024 / sizeof(T);

// True where a byte of `keep` is not 0; `count` bytes may be read.
template <class D>
HWY_INLINE hn::Mask<D> LoadKeep(D d, const std::uint8_t* keep, int64_t count) {
  const hn::Rebind<std::uint8_t, D> d8;
  const hn::Rebind<std::uint32_t, D> d32;
  const hn::RebindToUnsigned<D> bits;
  std::uint8_t tail[hn::MaxLanes(d8)] = {};
  if (count < static_cast<int64_t>(hn::Lanes(d8))) {
    std::memcpy(tail, keep, static_cast<std::size_t>(count));
    keep = tail;
  }
  const auto wide = hn::PromoteTo(d32, hn::LoadU(d8, keep));
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return hn::RebindMask(d, hn::Ne(wide, hn::Zero(d32)));
  } else {
    return hn::RebindMask(d, hn::Ne(hn::PromoteTo(bits, wide), hn::Zero(bits)));
  }
}

// score -> score where kept, else -inf.
template <typename T>
class KeepMask {
 public:
  // keep[0] belongs to the first key of the block; stride 0 or 1.
  KeepMask(const std::uint8_t* keep, int64_t stride) : keep_(keep), stride_(stride) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V score, int64_t j, int64_t left) const {
    const V minus_inf = hn::Set(d, kMinusInf<T>);
    if (stride_ == 0) return *keep_ ? score : minus_inf;
    return hn::IfThenElse(LoadKeep(d, keep_ + j, left), score, minus_inf);
  }

 private:
  const std::uint8_t* keep_;
  int64_t stride_;
};

// The keys [from, to) of a block, counted from its first; `all`: every row keeps every one of them.
struct KeptKeys {
  int64_t from, to;
  bool all;
};

// Narrows [from, to) to the panels in which a mask keeps a key for some of the rows.
template <typename T>
KeptKeys KeptByMask(const View<const std::uint8_t, 4>& keep, int64_t batch, const Row* rows, int count,
                    int64_t key_begin, int64_t from, int64_t to) {
  std::uint8_t any[kKeyBlock<T>] = {}, min = 255;
  const std::uint8_t* previous = nullptr;
  for (int r = 0; r < count; ++r) {
    const std::uint8_t* kept = keep.at(batch, rows[r].head, rows[r].query, key_begin);
    if (kept == previous) continue;  // one mask row for all queries
    previous = kept;
    if (keep.stride[3] == 0) {
      std::fill(any + from, any + to, static_cast<std::uint8_t>(any[from] | *kept));
      min = std::min(min, *kept);
      continue;
    }
    for (int64_t j = from; j < to; ++j) {
      any[j] = static_cast<std::uint8_t>(any[j] | kept[j]);
      min = std::min(min, kept[j]);
    }
  }
  while (from < to && !any[to - 1]) --to;
  while (from < to && !any[from]) ++from;
  if (from == to) return {0, 0, false};
  return {from / kPanel<T> * kPanel<T>, to, min != 0};
}

// Dropout: weights[from, to) become scale * weight where `keep` is nonzero, else 0. keep[0] belongs to the first key of
// the block; stride 0 or 1.
template <typename T>
void ApplyDropout(const std::uint8_t* keep, int64_t stride, T scale, int64_t from, int64_t to, T* weights) {
  const Tag<T> d;
  if (stride == 0) {
    const T factor = *keep ? scale : T{0};
    for (int64_t j = from; j < to; ++j) weights[j] *= factor;
    return;
  }
  for (int64_t j = from; j < to; j += kLanes<T>) {
    const auto kept = LoadKeep(d, keep + j, to - j);
    hn::StoreU(hn::IfThenElseZero(kept, hn::Mul(hn::LoadU(d, weights + j), hn::Set(d, scale))), d, weights + j);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
