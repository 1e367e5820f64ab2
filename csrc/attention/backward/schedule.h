// How the backward pass of attention is divided into tasks: by shapes alone, never by the number of threads, because
// the division decides the order of additions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "headwise/attention.h"

namespace headwise {

// A task is a chunk of keys of a key and value head. Where a bias gradient is summed over batch entries or heads, the
// task goes through these in order, so that it is the only one to add to its keys' columns; or, while a few copies of
// the gradient are small, they are divided into `parts`, each with a copy of its own.
class BackwardSchedule {
 public:
  template <typename T>
  BackwardSchedule(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients);

  std::int64_t tasks() const { return fixed_ * parts_ * chunks_; }
  std::int64_t chunks() const { return chunks_; }
  std::int64_t chunk_keys() const { return chunk_keys_; }
  double work() const { return work_; }  // floating-point operations

  std::int64_t part_of(std::int64_t task) const { return task / fixed_ % parts_; }
  std::int64_t chunk_of(std::int64_t task) const { return task / fixed_ / parts_; }

  // Whether several tasks add to this gradient, and how many copies of it they need; 0: none.
  template <typename A>
  std::int64_t Copies(const View<A, 4>& d_bias) const {
    const std::int64_t copies = parts_ * (SumsKeys(d_bias) ? chunks_ : 1);
    return copies > 1 ? copies : 0;
  }
  template <typename A>
  std::int64_t CopyOf(const View<A, 4>& d_bias, std::int64_t task) const {
    return SumsKeys(d_bias) ? part_of(task) * chunks_ + chunk_of(task) : part_of(task);
  }

  // Copies of the gradient of the relative bias, to whose entries all chunks add; 0: none.
  std::int64_t RelativeCopies() const { return parts_ * chunks_ > 1 ? parts_ * chunks_ : 0; }
  std::int64_t RelativeCopyOf(std::int64_t task) const { return part_of(task) * chunks_ + chunk_of(task); }

  // visit(batch, kv_head) for the heads of a task, in order.
  template <class Visit>
  void ForHeads(std::int64_t task, const Visit& visit) const {
    const std::int64_t fixed = task % fixed_, part = part_of(task);
    for (std::int64_t u = summed_ * part / parts_; u < summed_ * (part + 1) / parts_; ++u) {
      const std::int64_t batch = !sums_batch_  ? (sums_heads_ ? fixed : fixed / kv_heads_)
                                 : sums_heads_ ? u / kv_heads_
                                               : u;
      visit(batch, !sums_heads_ ? fixed % kv_heads_ : u % kv_heads_);
    }
  }

 private:
  template <typename A>
  bool SumsKeys(const View<A, 4>& d_bias) const {
    return d_bias.shape[3] == 1 && key_len_ > 1;
  }

  std::int64_t kv_heads_, key_len_;
  bool sums_batch_ = false, sums_heads_ = false;
  std::int64_t fixed_, summed_, parts_ = 1;  // tasks of a chunk without parts; heads that each goes through
  std::int64_t chunks_ = 1, chunk_keys_ = 0;
  double work_ = 0;
};

}  // namespace headwise
