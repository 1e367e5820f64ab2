#include "attention/schedule.h"

#include <algorithm>
#include <cstddef>
#include <variant>

#include "attention/kernel.h"

namespace headwise {
namespace {

// Bytes of packed queries and outputs of a block of queries, which every block of packed keys and values meets in turn.
// More rows amortise packing better: packing costs 3 % at 512 rows and head_dim 64.
constexpr std::int64_t kBlockBytes = 1024 * 1024;
constexpr std::int64_t kMaxRows = 2048;
constexpr std::int64_t kMinRows = 48;

// Bytes of a block's requested weights, which stay in L2 until their rows have met all keys.
constexpr std::int64_t kWeightsBytes = 512 * 1024;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename T>
std::int64_t MaxBlockRows(const AttentionArgs<T>& args) {
  // Limited to kBlockBytes first, so that the product does not overflow.
  const auto bytes = [](std::int64_t width) {
    return std::min(width, kBlockBytes) * static_cast<std::int64_t>(sizeof(Accumulator<T>));
  };
  const std::int64_t row_bytes = bytes(args.query.shape[3]) + bytes(args.value.shape[3]);
  const std::int64_t rows = std::clamp(kBlockBytes / std::max<std::int64_t>(1, row_bytes), kMinRows, kMaxRows);
  if (!args.weights) return rows;
  return std::clamp(kWeightsBytes / std::max<std::int64_t>(1, bytes(args.key.shape[2])), kMinRows, rows);
}

// Cost of a decode task apart from its keys, in floating-point operations. A byte of keys and values costs one.
constexpr double kDecodeTaskWork = 15'000;

// Cost of a small head, and of each of its scores, apart from the products.
constexpr double kSmallHeadWork = 1'500, kSmallScoreWork = 150;

// Bytes of a number of the keys and values.
template <typename T>
std::size_t KeySize(const AttentionArgs<T>& args) {
  if (std::holds_alternative<std::monostate>(args.stored)) return sizeof(T);
  return std::holds_alternative<StoredKeys<std::int8_t>>(args.stored) ? 1 : 2;
}

// Keys of a chunk: two key blocks (1 KB per score row each), and more for long sequences, so that there are at most
// about 64 partial results to combine.
template <typename T>
std::int64_t ChunkKeys(std::int64_t key_len) {
  constexpr std::int64_t kBlock = 1024 / sizeof(Accumulator<T>), kMaxChunks = 64;
  return std::max(2 * kBlock, CeilDiv(CeilDiv(key_len, kMaxChunks), kBlock) * kBlock);
}

// Whether decode/small-inl.h computes a call with few rows.
template <typename T>
bool IsSmall(const AttentionArgs<T>& args) {
  const auto& spec = args.spec;
  const std::int64_t keys = args.key.shape[2], head_dim = args.query.shape[3], value_dim = args.value.shape[3];
  return keys > 0 && keys <= kSmallKeys && head_dim <= kSmallWidth && value_dim > 0 && value_dim <= kSmallWidth &&
         !args.weights && std::holds_alternative<std::monostate>(args.stored) && spec.softcap == 0 &&
         spec.keep.empty() && spec.bias.empty() && !spec.alibi_slopes && !spec.sinks && !spec.dropout_keep &&
         !spec.blocks && !spec.relative_bias && ChosenDecodeKernels().Of<T>().small_heads;
}

}  // namespace

template <typename T>
Schedule::Schedule(const AttentionArgs<T>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  if (batch == 0 || heads == 0 || query_len == 0) return;
  const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2];
  const auto width = static_cast<double>(head_dim + args.value.shape[3]);
  heads_ = batch * kv_heads;
  group_ = heads / kv_heads;
  query_len_ = query_len;
  work_ =
      2.0 * static_cast<double>(batch * heads) * static_cast<double>(query_len) * static_cast<double>(key_len) * width;
  decode_ = group_ * query_len <= kMaxDecodeRows;
  if (!decode_) {
    max_rows_ = MaxBlockRows(args);
    parts_ = query_len;
    return;
  }
  size_ = ChunkKeys<T>(key_len);
  parts_ = std::max<std::int64_t>(1, CeilDiv(key_len, size_));
  const double bytes =
      static_cast<double>(KeySize(args)) * static_cast<double>(heads_) * static_cast<double>(key_len) * width;
  small_ = IsSmall(args);
  if (small_) {
    const auto scores = static_cast<double>(group_ * query_len * key_len);
    work_ += bytes + (kSmallHeadWork + kSmallScoreWork * scores) * static_cast<double>(heads_);
    return;
  }
  work_ += bytes + kDecodeTaskWork * static_cast<double>(tasks());
}
template Schedule::Schedule(const AttentionArgs<Float16>&);
template Schedule::Schedule(const AttentionArgs<BFloat16>&);
template Schedule::Schedule(const AttentionArgs<float>&);
template Schedule::Schedule(const AttentionArgs<double>&);

void Schedule::Divide(int threads, double total) {
  if (decode_ || heads_ == 0) return;
  const auto queries_in = [&](std::int64_t rows) { return std::max<std::int64_t>(1, rows / group_); };
  // Threads are not equally fast: at least 8 tasks for each.
  const auto too_few_tasks = [&](std::int64_t rows) {
    const std::int64_t tasks = heads_ * CeilDiv(query_len_, queries_in(rows));
    return static_cast<double>(tasks) * total < 8.0 * threads * work_;
  };
  std::int64_t rows = max_rows_;
  while (rows > kMinRows && threads > 1 && too_few_tasks(rows)) rows /= 2;
  size_ = std::min(query_len_, queries_in(rows));
  parts_ = CeilDiv(query_len_, size_);
}

}  // namespace headwise
