#include "headwise/attention.h"

#include <algorithm>

#include "kernels/attention.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace headwise {
namespace {

// Packed queries and outputs of a block of queries, which each block of packed keys and values meets in turn. The more
// rows, the less packing costs: 3 % with 512 of them, at 64 features.
constexpr std::int64_t kBlockBytes = 1024 * 1024;
constexpr std::int64_t kMostRows = 2048;
constexpr std::int64_t kFewestRows = 48;

// Rows of the weights stay in L2 from the first sweep over them to the last.
constexpr std::int64_t kWeightsBytes = 512 * 1024;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename T>
std::int64_t BlockRows(const AttentionArgs<T>& args) {
  const std::int64_t row_bytes =
      (args.query.shape[3] + args.value.shape[3]) * static_cast<std::int64_t>(sizeof(Accumulator<T>));
  const std::int64_t rows = std::clamp(kBlockBytes / std::max<std::int64_t>(1, row_bytes), kFewestRows, kMostRows);
  if (!args.weights) return rows;
  const std::int64_t weight_bytes = args.key.shape[2] * static_cast<std::int64_t>(sizeof(Accumulator<T>));
  return std::clamp(kWeightsBytes / std::max<std::int64_t>(1, weight_bytes), kFewestRows, rows);
}

// Up to so many rows, packing keys and values costs more than it saves.
constexpr std::int64_t kMostDecodeRows = 8;

// Keys of a chunk: two blocks, and more of a long sequence, so that what the chunks leave stays small.
template <typename T>
std::int64_t ChunkKeys(std::int64_t key_len) {
  constexpr std::int64_t kBlock = 1024 / sizeof(Accumulator<T>), kMostChunks = 64;
  return std::max(2 * kBlock, CeilDiv(CeilDiv(key_len, kMostChunks), kBlock) * kBlock);
}

template <typename T>
void Decode(const AttentionArgs<T>& args, double work) {
  const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2];
  const std::int64_t heads_of_batch = args.query.shape[0] * kv_heads, chunk_keys = ChunkKeys<T>(key_len);
  const std::int64_t chunks = std::max<std::int64_t>(1, CeilDiv(key_len, chunk_keys)), tasks = heads_of_batch * chunks;
  const AttentionKernel<T>& kernel = GetAttentionKernel(args);
  const int threads = ThreadsFor(tasks, work);
  const std::size_t partial_bytes = kernel.partial_bytes(args);
  const Scratch scratch(threads, kernel.chunk_scratch_bytes(args));
  const Scratch partials(1, partial_bytes * static_cast<std::size_t>(tasks));
  const auto partial = [&](std::int64_t task) {
    return partials.thread(0) + partial_bytes * static_cast<std::size_t>(task);
  };
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const std::int64_t head = task / chunks, begin = task % chunks * chunk_keys;
    const DecodeChunk chunk{head / kv_heads, head % kv_heads, begin, std::min(key_len, begin + chunk_keys)};
    kernel.chunk(args, chunk, partial(task), scratch.thread(thread));
  });
  const std::int64_t rows = args.query.shape[0] * args.query.shape[1] * args.query.shape[2];
  const std::int64_t row_work = 2 * chunks * args.value.shape[3] + (args.weights ? 16 * key_len : 0);
  const double merge_work = static_cast<double>(rows) * static_cast<double>(row_work);
  ParallelRanges(heads_of_batch, merge_work, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t head = begin; head < end; ++head) {
      kernel.merge(args, head / kv_heads, head % kv_heads, chunks, partial(head * chunks));
    }
  });
}

template <typename T>
void Run(const AttentionArgs<T>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2];
  if (batch == 0 || heads == 0 || query_len == 0) return;
  const std::int64_t heads_of_batch = batch * kv_heads, group = heads / kv_heads, queries = query_len;

  const double work = 2.0 * static_cast<double>(batch * heads) * static_cast<double>(query_len) *
                      static_cast<double>(key_len) * static_cast<double>(head_dim + args.value.shape[3]);
  if (group * query_len <= kMostDecodeRows) return Decode(args, work);
  const int wanted = ThreadsFor(heads_of_batch * query_len, work);
  // Smaller blocks where there would be too few for all threads, not all equally fast, to be busy to the end.
  std::int64_t rows = BlockRows(args);
  const auto tasks_with = [&](std::int64_t r) {
    return heads_of_batch * CeilDiv(queries, std::max<std::int64_t>(1, r / group));
  };
  while (rows > kFewestRows && wanted > 1 && tasks_with(rows) < 8 * wanted) rows /= 2;
  const std::int64_t block_queries = std::min(query_len, std::max<std::int64_t>(1, rows / group));
  const std::int64_t blocks = CeilDiv(query_len, block_queries), tasks = heads_of_batch * blocks;
  const int threads = static_cast<int>(std::min<std::int64_t>(wanted, tasks));

  const AttentionKernel<T>& kernel = GetAttentionKernel(args);
  const Scratch scratch(threads, kernel.scratch_bytes(args, block_queries * group));
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    // Late queries keep the most keys under causality: the longest tasks come first.
    const std::int64_t query = (blocks - 1 - task / heads_of_batch) * block_queries, head = task % heads_of_batch;
    const AttentionBlock block{head / kv_heads, head % kv_heads, query, std::min(queries, query + block_queries)};
    kernel.block(args, block, scratch.thread(thread));
  });
}

}  // namespace

void Attention(const AttentionArgs<float>& args) { Run(args); }
void Attention(const AttentionArgs<double>& args) { Run(args); }
void Attention(const AttentionArgs<Float16>& args) { Run(args); }
void Attention(const AttentionArgs<BFloat16>& args) { Run(args); }

}  // namespace headwise
