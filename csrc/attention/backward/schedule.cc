#include "attention/backward/schedule.h"

#include "attention/backward/kernel.h"

namespace headwise {
namespace {

// Enough tasks for load balance on many threads.
constexpr std::int64_t kTasks = 32;

// A chunk has its own sums of d_query, which take the time of about 10 keys.
constexpr std::int64_t kMinChunkKeys = 512, kMaxChunks = 16;

// Of all copies of a bias gradient.
constexpr std::int64_t kMaxCopyBytes = 16 << 20;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

template <typename T>
BackwardSchedule::BackwardSchedule(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  kv_heads_ = args.key.shape[1], key_len_ = args.key.shape[2];
  std::int64_t bytes = 1, relative_bytes = 1;  // of a copy of all bias gradients, and of that of the relative bias
  const auto add = [&, batch = batch, heads = heads](const auto& d_bias, std::int64_t& total) {
    if (!d_bias) return;
    sums_batch_ |= d_bias.shape[0] < batch;
    sums_heads_ |= d_bias.shape[1] < heads && kv_heads_ > 1;
    std::int64_t size = sizeof(Accumulator<T>);
    for (const std::int64_t n : d_bias.shape) size = std::min(kMaxCopyBytes, size * std::min(n, kMaxCopyBytes));
    total += size;
  };
  for (const auto& d_bias : gradients.d_bias) add(d_bias, bytes);
  add(gradients.d_relative_bias, relative_bytes);
  bytes += relative_bytes;
  fixed_ = (sums_batch_ ? 1 : batch) * (sums_heads_ ? 1 : kv_heads_);
  summed_ = (sums_batch_ ? batch : 1) * (sums_heads_ ? kv_heads_ : 1);
  if (fixed_ == 0) return;
  parts_ = std::clamp<std::int64_t>(std::min(CeilDiv(kTasks, fixed_), kMaxCopyBytes / bytes), 1,
                                    std::max<std::int64_t>(1, summed_));
  // Each chunk has a copy of the gradient of the relative bias, too.
  const std::int64_t most = std::min({kMaxChunks, std::max<std::int64_t>(1, key_len_ / kMinChunkKeys),
                                      std::max<std::int64_t>(1, kMaxCopyBytes / (relative_bytes * parts_))});
  chunks_ = std::min(CeilDiv(kTasks, fixed_ * parts_), most);
  chunk_keys_ = CeilDiv(CeilDiv(key_len_, chunks_), kBackwardKeys<T>) * kBackwardKeys<T>;
  chunks_ = std::max<std::int64_t>(1, chunk_keys_ > 0 ? CeilDiv(key_len_, chunk_keys_) : 1);
  work_ = 2.0 * static_cast<double>(batch * heads) * static_cast<double>(query_len) * static_cast<double>(key_len_) *
          static_cast<double>(3 * head_dim + 2 * args.value.shape[3]);
}
template BackwardSchedule::BackwardSchedule(const AttentionArgs<Float16>&, const AttentionGradients<Float16>&);
template BackwardSchedule::BackwardSchedule(const AttentionArgs<BFloat16>&, const AttentionGradients<BFloat16>&);
template BackwardSchedule::BackwardSchedule(const AttentionArgs<float>&, const AttentionGradients<float>&);
template BackwardSchedule::BackwardSchedule(const AttentionArgs<double>&, const AttentionGradients<double>&);

}  // namespace headwise
