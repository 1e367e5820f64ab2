// AttentionStatistics: parts of the queries as tasks, each of which goes through blocks of queries with the kernels of
// attention, and the sums over the parts.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "attention/batch_entries.h"
#include "attention/kernel.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "headwise/attention_statistics.h"

namespace headwise {
namespace {

// Bytes of the weights of a block of queries, which are read once more: they stay in L2 up to about 5,000 keys, and in
// L3 beyond. Fewer rows than kMinRows cost more for packing keys than they save.
constexpr std::int64_t kWeightsBytes = 1024 * 1024;
constexpr std::int64_t kMinRows = 48, kMaxRows = 768;

// Parts of the queries of all heads together. Each has sums of its own, which are added in order: the division depends
// on shapes alone, so results have the same bits for any number of threads.
constexpr std::int64_t kParts = 64;

// Blocks are smaller, down to kMinRows, where there would be fewer tasks for the threads.
constexpr std::int64_t kLeastTasks = 16;

// The largest blocks of block_mass, with which no arithmetic overflows.
constexpr std::int64_t kMaxBlock = std::int64_t{1} << 61;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// One call: all batch entries, or one of them if they differ in length.
template <typename T>
struct Call {
  Call(const AttentionArgs<T>& arguments, const WeightStatistics<T>& results)
      : args(arguments), statistics(results), kernel(&GetAttentionKernel(arguments)) {
    const auto [batch, query_heads, query_len, head_dim] = args.query.shape;
    const std::int64_t key_len = args.key.shape[2];
    heads = batch * args.key.shape[1];
    group = query_heads / args.key.shape[1];
    const std::int64_t row_bytes = std::max<std::int64_t>(1, key_len) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t rows = std::clamp(kWeightsBytes / row_bytes, kMinRows, kMaxRows);
    const std::int64_t shared = CeilDiv(query_len, CeilDiv(kLeastTasks, heads));
    block_queries = std::min({query_len, std::max<std::int64_t>(1, rows / group), std::max(kMinRows / group, shared)});
    block_queries = std::max<std::int64_t>(1, block_queries);
    // No block of queries of block_mass belongs to two parts.
    const std::int64_t query_size = std::min(statistics.query_size, query_len);
    const std::int64_t least = std::max(CeilDiv(query_len, CeilDiv(kParts, heads)), block_queries);
    part_queries = CeilDiv(least, query_size) * query_size;
    parts = CeilDiv(query_len, part_queries);
    work = 2.0 * static_cast<double>(heads * group) * static_cast<double>(query_len) * static_cast<double>(key_len) *
           static_cast<double>(head_dim + 40);
  }

  std::int64_t tasks() const { return heads * parts; }
  std::size_t mass_size() const {  // of a part: [group][key_len]
    return Bytes(static_cast<std::size_t>(group), args.key.shape[2]);
  }

  AttentionArgs<T> args;
  WeightStatistics<T> statistics;
  const AttentionKernel<T>* kernel;
  std::int64_t heads, group, block_queries, part_queries, parts;
  double work;
  std::int64_t first_task = 0;  // in the numbering of all calls' tasks
  double* key_mass = nullptr;   // [tasks][group][key_len], if it is requested
};

template <typename T>
void RunPart(const Call<T>& call, std::int64_t task, std::byte* scratch) {
  const std::int64_t kv_heads = call.args.key.shape[1], head = task % call.heads;
  // Under causality the last queries keep the most keys: the longest tasks come first.
  const std::int64_t part = call.parts - 1 - task / call.heads;
  const std::int64_t begin = part * call.part_queries;
  const std::int64_t end = std::min(call.args.query.shape[2], begin + call.part_queries);
  double* mass = nullptr;
  if (call.key_mass) {
    mass = call.key_mass + call.mass_size() * static_cast<std::size_t>(head * call.parts + part);
    std::fill_n(mass, call.mass_size(), 0.0);
  }
  for (std::int64_t query = begin; query < end; query += call.block_queries) {
    const std::int64_t query_end = std::min(end, query + call.block_queries);
    call.kernel->block(call.args, {head / kv_heads, head % kv_heads, query, query_end, mass}, scratch);
  }
}

// The mass of a head's keys: the sum of those of its parts, in order.
template <typename T>
void AddParts(const Call<T>& call, std::int64_t head) {
  const std::int64_t kv_heads = call.args.key.shape[1], key_len = call.args.key.shape[2];
  for (std::int64_t member = 0; member < call.group; ++member) {
    T* const mass = call.statistics.key_mass.at(head / kv_heads, head % kv_heads * call.group + member);
    const double* first =
        call.key_mass + call.mass_size() * static_cast<std::size_t>(head * call.parts) + member * key_len;
    for (std::int64_t j = 0; j < key_len; ++j) {
      double sum = 0;
      const double* part = first + j;
      for (std::int64_t p = 0; p < call.parts; ++p, part += call.mass_size()) sum += *part;
      mass[j] = static_cast<T>(sum);
    }
  }
}

template <typename T>
void RunCalls(std::vector<Call<T>>& calls) {
  std::int64_t tasks = 0;
  double work = 0;
  std::size_t scratch_bytes = 0, masses = 0;
  for (Call<T>& call : calls) {
    call.args.statistics = &call.statistics;
    call.first_task = tasks;
    tasks += call.tasks();
    work += call.work;
    scratch_bytes = std::max(scratch_bytes, call.kernel->scratch_bytes(call.args, call.block_queries * call.group));
    if (call.statistics.key_mass) masses = Bytes(1, masses + Bytes(call.mass_size(), call.tasks()));
  }
  if (tasks == 0) return;
  const Scratch mass_memory(1, Bytes(sizeof(double), masses));
  auto* next = reinterpret_cast<double*>(mass_memory.thread(0));
  for (Call<T>& call : calls) {
    if (!call.statistics.key_mass) continue;
    call.key_mass = next;
    next += call.mass_size() * static_cast<std::size_t>(call.tasks());
  }
  const int threads = ThreadsFor(tasks, work);
  const Scratch scratch(threads, scratch_bytes);
  ParallelFor(tasks, threads, [&](std::int64_t task, int thread) {
    const auto later = [](std::int64_t t, const Call<T>& call) { return t < call.first_task; };
    const Call<T>& call = *(std::upper_bound(calls.begin(), calls.end(), task, later) - 1);
    RunPart(call, task - call.first_task, scratch.thread(thread));
  });
  for (const Call<T>& call : calls) {
    for (std::int64_t head = 0; call.key_mass && head < call.heads; ++head) AddParts(call, head);
  }
}

template <typename T, std::size_t kRank>
void CheckResult(const View<T, static_cast<int>(kRank)>& view, const std::array<std::int64_t, kRank>& shape,
                 const char* name) {
  if (!view) return;
  bool empty = false;
  for (const std::int64_t n : shape) empty |= n == 0;
  if (view.shape != shape) throw std::invalid_argument(std::string(name) + ": shape does not match the other arrays");
  if (!empty && shape.back() > 1 && view.stride.back() != 1) {
    throw std::invalid_argument(std::string(name) + ": expected a contiguous last axis");
  }
}

template <typename T>
void Check(const AttentionArgs<T>& args, const WeightStatistics<T>& statistics) {
  CheckAttention(args);
  if (args.weights || args.spec.dropout_keep) {
    throw std::invalid_argument("weights, dropout_keep: expected none beside statistics");
  }
  for (const std::int64_t size : {statistics.query_size, statistics.key_size}) {
    if (size < 1 || size > kMaxBlock) throw std::invalid_argument("query_size, key_size: expected 1 to 2^61");
  }
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::int64_t key_len = args.key.shape[2], k = statistics.top_weights.shape[3];
  const std::array<std::int64_t, 3> rows{batch, heads, query_len};
  CheckResult<T, 3>(statistics.key_mass, {batch, heads, key_len}, "key_mass");
  CheckResult<T, 3>(statistics.entropy, rows, "entropy");
  CheckResult<T, 3>(statistics.max_weight, rows, "max_weight");
  CheckResult<T, 4>(statistics.top_weights, {batch, heads, query_len, k}, "top_weights");
  CheckResult<std::int64_t, 4>(statistics.top_keys, {batch, heads, query_len, k}, "top_keys");
  if (static_cast<bool>(statistics.top_weights) != static_cast<bool>(statistics.top_keys)) {
    throw std::invalid_argument("top_keys: expected together with top_weights");
  }
  if (statistics.top_weights && (k < 1 || k > key_len)) {
    throw std::invalid_argument("top_weights: expected 1 to key_len weights");
  }
  const std::array<std::int64_t, 4> blocks{batch, heads, CeilDiv(query_len, statistics.query_size),
                                           CeilDiv(key_len, statistics.key_size)};
  CheckResult<T, 4>(statistics.block_mass, blocks, "block_mass");
}

// 0 throughout: of keys that a batch entry does not have, and of sums to begin with.
template <typename T>
void Clear(const WeightStatistics<T>& statistics) {
  const auto& mass = statistics.key_mass;
  const auto& blocks = statistics.block_mass;
  for (std::int64_t b = 0; mass && b < mass.shape[0]; ++b) {
    for (std::int64_t h = 0; h < mass.shape[1]; ++h) std::fill_n(mass.at(b, h), mass.shape[2], T{0});
  }
  for (std::int64_t b = 0; blocks && b < blocks.shape[0]; ++b) {
    for (std::int64_t h = 0; h < blocks.shape[1]; ++h) {
      for (std::int64_t i = 0; i < blocks.shape[2]; ++i) std::fill_n(blocks.at(b, h, i), blocks.shape[3], T{0});
    }
  }
}

// Those of batch entry b.
template <typename T>
WeightStatistics<T> Entry(WeightStatistics<T> statistics, std::int64_t b) {
  const auto move = [&](auto& view) {
    if (view) view.data += b * view.stride[0];
  };
  move(statistics.key_mass), move(statistics.entropy), move(statistics.max_weight);
  move(statistics.top_weights), move(statistics.top_keys), move(statistics.block_mass);
  return statistics;
}

// The same values and output without columns.
template <typename T>
AttentionArgs<T> WithoutValues(AttentionArgs<T> args) {
  static T nothing;
  args.value = args.key;
  args.value.shape[3] = 0;
  std::visit(
      [](auto& keys) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(keys)>, std::monostate>) {
          keys.value = keys.key;
          keys.value.shape[3] = 0;
          keys.value_scale = keys.key_scale;
          keys.value_bits = keys.key_bits;
          keys.value_bits.shape[3] = 0;
        }
      },
      args.stored);
  args.output = {&nothing, {args.query.shape[0], args.query.shape[1], args.query.shape[2], 0}, {}};
  return args;
}

}  // namespace

template <typename T>
void AttentionStatistics(const AttentionArgs<T>& args, const WeightStatistics<Accumulator<T>>& statistics) {
  const AttentionArgs<T> whole = WithoutValues(args);
  Check(whole, statistics);
  Clear(statistics);
  const auto& shape = args.query.shape;
  if (shape[0] == 0 || shape[1] == 0 || shape[2] == 0) return;
  std::vector<Call<T>> calls;
  if (args.spec.key_lengths.empty()) {
    calls.emplace_back(whole, statistics);
  } else {
    const std::vector<AttentionArgs<T>> entries = BatchEntries(whole);
    for (std::size_t b = 0; b < entries.size(); ++b) {
      calls.emplace_back(entries[b], Entry(statistics, static_cast<std::int64_t>(b)));
    }
  }
  RunCalls(calls);
}
template void AttentionStatistics(const AttentionArgs<float>&, const WeightStatistics<float>&);
template void AttentionStatistics(const AttentionArgs<double>&, const WeightStatistics<double>&);

}  // namespace headwise
