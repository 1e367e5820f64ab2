// Causality and the sliding window: the range of keys that one query may attend to,
//   i + offset - left <= j <= i + offset + right,
// where a side of -1 is open. Key blocks and tiles outside the range are skipped (kernel-inl.h, decode/kernel-inl.h);
// DropOutside drops the rest in the tiles that the range cuts.

#if defined(HEADWISE_ATTENTION_MODIFIERS_WINDOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_MODIFIERS_WINDOW_INL_H_
#undef HEADWISE_ATTENTION_MODIFIERS_WINDOW_INL_H_
#else
#define HEADWISE_ATTENTION_MODIFIERS_WINDOW_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "headwise/attention.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

using std::int64_t;

template <typename T>
constexpr T kMinusInf = -std::numeric_limits<T>::infinity();

// One query of one head, and the keys [low, high) in its window.
struct Row {
  int64_t head, query, low, high;
};

template <typename T>
Row MakeRow(const AttentionArgs<T>& args, int64_t head, int64_t query) {
  const int64_t key_len = args.key.shape[2], position = query + args.spec.offset;
  const int64_t low = args.spec.left < 0 ? 0 : std::clamp<int64_t>(position - args.spec.left, 0, key_len);
  const int64_t high = args.spec.right < 0 ? key_len : std::clamp<int64_t>(position + args.spec.right + 1, 0, key_len);
  return {head, query, low, std::max(low, high)};
}

// scores[from, to) of keys outside the row's window become -inf; scores[0] belongs to key key_begin.
template <typename T>
void DropOutside(const Row& row, int64_t key_begin, int64_t from, int64_t to, T* scores) {
  const int64_t begin = std::clamp(row.low - key_begin, from, to), end = std::clamp(row.high - key_begin, begin, to);
  std::fill(scores + from, scores + begin, kMinusInf<T>);
  std::fill(scores + end, scores + to, kMinusInf<T>);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
