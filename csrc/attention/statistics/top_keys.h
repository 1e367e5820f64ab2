// The largest weights of one query, and their keys.
#pragma once

#include <cstdint>

namespace headwise {

template <typename T>
struct WeightOfKey {
  T weight;
  std::int64_t key;
};

// Keeps the `k` largest of the weights that are added in the order of their keys; of equal weights, the first keys. The
// buffer has 2 k entries: whenever it is full, the larger half of them is selected, so that the cost of a weight that
// is added is constant.
template <typename T>
class TopKeys {
 public:
  TopKeys(std::int64_t k, WeightOfKey<T>* buffer) : k_(k), buffer_(buffer) {}

  // A weight that does not exceed it need not be added: 0 at first.
  T threshold() const { return threshold_; }

  void Add(T weight, std::int64_t key) {
    buffer_[count_++] = {weight, key};
    if (count_ == 2 * k_) Select();
  }

  // In decreasing order. If fewer than k weights have been added, the others are 0, with the first keys without one.
  void Finish(T* weights, std::int64_t* keys);

 private:
  void Select();

  std::int64_t k_, count_ = 0;
  T threshold_ = T{0};
  WeightOfKey<T>* buffer_;
};

}  // namespace headwise
