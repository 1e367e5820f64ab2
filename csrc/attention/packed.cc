// Sequences of different lengths, packed or right-padded: checked, then sliced into one call per sequence.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "attention/batch_entries.h"
#include "headwise/attention.h"

namespace headwise {
namespace {

using Vector = std::vector<std::int64_t>;

// The view with a batch axis of size 1 before.
template <typename T, int kRank>
View<T, kRank + 1> WithBatch(const View<T, kRank>& view) {
  View<T, kRank + 1> result{view.data, {1}, {0}};
  std::copy(view.shape.begin(), view.shape.end(), result.shape.begin() + 1);
  std::copy(view.stride.begin(), view.stride.end(), result.stride.begin() + 1);
  return result;
}

// Entries [begin, begin + length) of axis 2.
template <typename T, int kRank>
View<T, kRank> Rows(View<T, kRank> view, std::int64_t begin, std::int64_t length) {
  if (view) view.data += begin * view.stride[2];
  view.shape[2] = length;
  return view;
}

// Batch entry b, and the first `length` entries of `axis`. An axis of stride 0 is cut likewise.
template <typename T, int kRank>
View<T, kRank> Entry(View<T, kRank> view, std::int64_t b, int axis, std::int64_t length) {
  if (view) view.data += b * view.stride[0];
  view.shape[0] = 1;
  view.shape[axis] = length;
  return view;
}

// Calls function(view) for every array of stored keys and values; their keys are axis 2.
template <class Function>
void ForStoredViews(AnyStoredKeys& stored, const Function& function) {
  std::visit(
      [&](auto& keys) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(keys)>, std::monostate>) {
          function(keys.key), function(keys.value), function(keys.key_scale), function(keys.value_scale);
        }
      },
      stored);
}

// Clears weights of (heads, query_len, key_len) behind the first `length` keys.
template <typename T>
void ClearPadding(const View<T, 4>& weights, std::int64_t b, std::int64_t length) {
  for (std::int64_t h = 0; h < weights.shape[1]; ++h) {
    for (std::int64_t i = 0; i < weights.shape[2]; ++i) {
      T* const row = weights.at(b, h, i);
      std::fill(row + length, row + weights.shape[3], T{});
    }
  }
}

void CheckCount(const Vector& values, std::size_t count, const char* name) {
  if (values.size() == count) return;
  throw std::invalid_argument(std::string(name) + ": " + std::to_string(values.size()) + " values, expected " +
                              std::to_string(count) + ", one per sequence");
}

// Every sequence's rows [start, start + length) are among the `rows` rows of the packed array.
void CheckRanges(const Vector& starts, const Vector& lengths, std::int64_t rows, const char* name) {
  for (std::size_t s = 0; s < starts.size(); ++s) {
    const std::int64_t start = starts[s], length = lengths[s];
    if (start < 0 || length < 0 || start > rows || length > rows - start) {
      throw std::invalid_argument(std::string(name) + ": sequence " + std::to_string(s) + " has start " +
                                  std::to_string(start) + " and length " + std::to_string(length) + ", of " +
                                  std::to_string(rows) + " rows");
    }
  }
}

// No two sequences share a row: the order of their writes would decide the result.
void CheckDisjoint(const Vector& starts, const Vector& lengths, const char* name) {
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;  // start, end
  for (std::size_t s = 0; s < starts.size(); ++s) {
    if (lengths[s] > 0) ranges.emplace_back(starts[s], starts[s] + lengths[s]);
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t r = 1; r < ranges.size(); ++r) {
    if (ranges[r].first < ranges[r - 1].second) {
      throw std::invalid_argument(std::string(name) + ": row " + std::to_string(ranges[r].first) +
                                  " belongs to two sequences");
    }
  }
}

}  // namespace

template <typename T>
void AttentionVarlen(const PackedAttentionArgs<T>& args, const PackedSequences& sequences) {
  AttentionArgs<T> packed;
  packed.query = WithBatch(args.query);
  packed.key = WithBatch(args.key);
  packed.value = WithBatch(args.value);
  packed.output = WithBatch(args.output);
  packed.lse = WithBatch(args.lse);
  packed.spec = args.spec;
  packed.stored = args.stored;
  if (!args.spec.keep.empty() || !args.spec.bias.empty() || args.spec.dropout_keep || !args.spec.key_lengths.empty() ||
      args.spec.blocks) {
    throw std::invalid_argument("spec: packed sequences have no keep-masks, blocks, biases, dropout or key_lengths");
  }
  CheckAttention(packed);
  const std::size_t count = sequences.query_starts.size();
  CheckCount(sequences.query_lengths, count, "query_lengths");
  CheckCount(sequences.key_starts, count, "key_starts");
  CheckCount(sequences.key_lengths, count, "key_lengths");
  CheckCount(sequences.offsets, count, "offsets");
  CheckRanges(sequences.query_starts, sequences.query_lengths, packed.query.shape[2], "query_starts, query_lengths");
  CheckDisjoint(sequences.query_starts, sequences.query_lengths, "query_starts, query_lengths");
  CheckRanges(sequences.key_starts, sequences.key_lengths, packed.key.shape[2], "key_starts, key_lengths");

  const Vector& lengths = sequences.query_lengths;
  std::vector<AttentionArgs<T>> calls;
  calls.reserve(count - static_cast<std::size_t>(std::count(lengths.begin(), lengths.end(), 0)));
  for (std::size_t s = 0; s < count; ++s) {
    const std::int64_t query = sequences.query_starts[s], queries = lengths[s];
    if (queries == 0) continue;
    const std::int64_t key = sequences.key_starts[s], keys = sequences.key_lengths[s];
    AttentionArgs<T>& call = calls.emplace_back(packed);
    call.query = Rows(packed.query, query, queries);
    call.key = Rows(packed.key, key, keys);
    call.value = Rows(packed.value, key, keys);
    ForStoredViews(call.stored, [&](auto& view) { view = Rows(view, key, keys); });
    call.output = Rows(packed.output, query, queries);
    call.lse = Rows(packed.lse, query, queries);
    call.spec.relative_bias = Rows(packed.spec.relative_bias, query, queries);
    call.spec.offset = sequences.offsets[s];
  }
  AttentionVarlen(calls);
}
template void AttentionVarlen(const PackedAttentionArgs<Float16>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<BFloat16>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<float>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<double>&, const PackedSequences&);

template <typename T>
std::vector<AttentionArgs<T>> BatchEntries(const AttentionArgs<T>& args) {
  const Vector lengths = args.spec.key_lengths, offsets = args.spec.offsets;
  AttentionArgs<T> whole = args;
  whole.spec.key_lengths.clear();
  whole.spec.offsets.clear();
  std::vector<AttentionArgs<T>> calls(lengths.size(), whole);
  for (std::size_t s = 0; s < calls.size(); ++s) {
    const auto b = static_cast<std::int64_t>(s);
    const std::int64_t length = lengths[s];
    AttentionArgs<T>& call = calls[s];
    call.query = Entry(args.query, b, 0, 1);
    call.key = Entry(args.key, b, 2, length);
    call.value = Entry(args.value, b, 2, length);
    ForStoredViews(call.stored, [&](auto& view) { view = Entry(view, b, 2, length); });
    call.output = Entry(args.output, b, 0, 1);
    call.weights = Entry(args.weights, b, 3, length);
    if (args.lse) call.lse.data += b * args.lse.stride[0];
    call.lse.shape[0] = 1;
    if (args.weights) ClearPadding(args.weights, b, length);
    for (auto& keep : call.spec.keep) keep = Entry(keep, b, 3, length);
    call.spec.blocks.batch += b;
    for (Bias<T>& bias : call.spec.bias) {
      std::visit([&](auto& view) { view = Entry(view, b, 3, length); }, bias);
    }
    call.spec.dropout_keep = Entry(args.spec.dropout_keep, b, 3, length);
    if (args.spec.relative_bias) call.spec.relative_bias = Entry(args.spec.relative_bias, b, 0, 1);
    call.spec.offset += offsets[s];
  }
  return calls;
}
template std::vector<AttentionArgs<Float16>> BatchEntries(const AttentionArgs<Float16>&);
template std::vector<AttentionArgs<BFloat16>> BatchEntries(const AttentionArgs<BFloat16>&);
template std::vector<AttentionArgs<float>> BatchEntries(const AttentionArgs<float>&);
template std::vector<AttentionArgs<double>> BatchEntries(const AttentionArgs<double>&);

}  // namespace headwise
