// The largest weights of one query, and their keys.
#pragma once

#include <cstdint>

namespace headwise {

template <typename T>
struct WeightOfKey {
  T weight;
  std::int64_t key;
};

// Keeps the `k` largest of the weights that are added in the order of their keys; of equal weights, the first keys. A
// few are kept in order. Many are collected in a buffer of 2 k entries: whenever it is full, the larger half of them is
// selected, so that the cost of a weight does not grow with k.
template <typename T>
class TopKeys {
 public:
  TopKeys(std::int64_t k, WeightOfKey<T>* buffer) : k_(k), buffer_(buffer) {}

  // A weight that does not exceed it need not be added: 0 at first.
  T threshold() const { return threshold_; }

  void Add(T weight, std::int64_t key) {
    if (k_ > kFew) {
      buffer_[count_++] = {weight, key};
      if (count_ == 2 * k_) Select();
      return;
    }
    std::int64_t i = count_ < k_ ? count_++ : k_ - 1;
    for (; i > 0 && buffer_[i - 1].weight < weight; --i) buffer_[i] = buffer_[i - 1];
    buffer_[i] = {weight, key};
    if (count_ == k_) threshold_ = buffer_[k_ - 1].weight;
  }

  // In decreasing order. If fewer than k weights have been added, the others are 0, with the first keys without one.
  void Finish(T* weights, std::int64_t* keys);

 private:
  static constexpr std::int64_t kFew = 32;

  void Select();

  std::int64_t k_, count_ = 0;
  T threshold_ = T{0};
  WeightOfKey<T>* buffer_;
};

}  // namespace headwise
