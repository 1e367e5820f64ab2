#include "attention/statistics/top_keys.h"

#include <algorithm>
#include <cstdint>

namespace headwise {
namespace {

template <typename T>
bool ComesFirst(const WeightOfKey<T>& a, const WeightOfKey<T>& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.key < b.key;
}

}  // namespace

template <typename T>
void TopKeys<T>::Select() {
  std::nth_element(buffer_, buffer_ + k_ - 1, buffer_ + count_, ComesFirst<T>);
  count_ = k_;
  threshold_ = buffer_[k_ - 1].weight;
}

template <typename T>
void TopKeys<T>::Finish(T* weights, std::int64_t* keys) {
  const std::int64_t added = count_;
  if (added < k_) {
    std::sort(buffer_, buffer_ + added, [](const WeightOfKey<T>& a, const WeightOfKey<T>& b) { return a.key < b.key; });
    for (std::int64_t key = 0, next = 0; count_ < k_; ++key) {
      if (next < added && buffer_[next].key == key) {
        ++next;
      } else {
        buffer_[count_++] = {T{0}, key};
      }
    }
  }
  if (added < k_ || k_ > kFew) std::sort(buffer_, buffer_ + count_, ComesFirst<T>);
  for (std::int64_t i = 0; i < k_; ++i) weights[i] = buffer_[i].weight, keys[i] = buffer_[i].key;
}

template class TopKeys<float>;
template class TopKeys<double>;

}  // namespace headwise
