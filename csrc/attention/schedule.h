// How a call of attention is divided into tasks. Independent of kernels, targets and memory.
#pragma once

#include <cstdint>

#include "headwise/attention.h"

namespace headwise {

// The tasks of one call: for each key and value head, blocks of queries or, where queries are few (decode), chunks of
// keys (split-KV). Where keys are few as well, a task is a number of heads.
class Schedule {
 public:
  template <typename T>
  explicit Schedule(const AttentionArgs<T>& args);

  bool decode() const { return decode_; }
  bool small() const { return small_; }  // decode of few keys without modifiers
  // Floating-point operations of the call, and the equivalent of its memory traffic.
  double work() const { return work_; }
  // An upper bound until Divide.
  std::int64_t tasks() const { return small_ ? (heads_ + kSmallHeads - 1) / kSmallHeads : heads_ * parts_; }

  // Sets the queries of a block: as many as suit the caches, but fewer where this call's share of `threads` threads, by
  // its part of all calls' `total` work, would have too few tasks for load balance.
  void Divide(int threads, double total);

  // Key and value heads of a task, if small().
  static constexpr std::int64_t kSmallHeads = 64;

  std::int64_t heads() const { return heads_; }  // key and value heads of all batch entries
  std::int64_t group() const { return group_; }  // query heads per key and value head
  std::int64_t parts() const { return parts_; }  // blocks or chunks per key and value head
  std::int64_t size() const { return size_; }    // queries of a block, keys of a chunk

 private:
  bool decode_ = false, small_ = false;
  double work_ = 0;
  std::int64_t heads_ = 0, group_ = 1, query_len_ = 0, size_ = 1, parts_ = 0;
  std::int64_t max_rows_ = 0;  // of a block
};

}  // namespace headwise
