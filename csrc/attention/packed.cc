// Sequences of different lengths, packed or right-padded: checked, then sliced into one call per sequence.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "attention/batch_entries.h"
#include "headwise/attention.h"
#include "headwise/attention_backward.h"

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
          function(keys.key_bits), function(keys.value_bits);
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

// The packed arrays as one batch entry, checked.
template <typename T>
AttentionArgs<T> AsBatch(const PackedAttentionArgs<T>& args, const PackedSequences& sequences) {
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
  return packed;
}

// Sequence s of the packed arrays.
template <typename T>
AttentionArgs<T> Sequence(const AttentionArgs<T>& packed, const PackedSequences& sequences, std::size_t s) {
  const std::int64_t query = sequences.query_starts[s], queries = sequences.query_lengths[s];
  const std::int64_t key = sequences.key_starts[s], keys = sequences.key_lengths[s];
  AttentionArgs<T> call = packed;
  call.query = Rows(packed.query, query, queries);
  call.key = Rows(packed.key, key, keys);
  call.value = Rows(packed.value, key, keys);
  ForStoredViews(call.stored, [&](auto& view) { view = Rows(view, key, keys); });
  call.output = Rows(packed.output, query, queries);
  call.lse = Rows(packed.lse, query, queries);
  call.spec.relative_bias = Rows(packed.spec.relative_bias, query, queries);
  call.spec.offset = sequences.offsets[s];
  return call;
}

// Row s of an array of numbers per sequence and head; null if it is not given.
template <typename A>
A* HeadsOf(const View<A, 2>& array, std::size_t s) {
  return array ? array.at(static_cast<std::int64_t>(s)) : nullptr;
}

void CheckHeads(bool given, std::int64_t rows, std::int64_t heads, std::int64_t stride,
                const std::array<std::int64_t, 2>& expected, const char* name) {
  if (!given || (rows == expected[0] && heads == expected[1] && (heads <= 1 || stride == 1))) return;
  throw std::invalid_argument(std::string(name) +
                              ": expected a number per sequence and head, the last axis contiguous");
}

}  // namespace

template <typename T>
void AttentionVarlen(const PackedAttentionArgs<T>& args, const PackedSequences& sequences) {
  const AttentionArgs<T> packed = AsBatch(args, sequences);
  const Vector& lengths = sequences.query_lengths;
  std::vector<AttentionArgs<T>> calls;
  calls.reserve(lengths.size() - static_cast<std::size_t>(std::count(lengths.begin(), lengths.end(), 0)));
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    if (lengths[s] > 0) calls.push_back(Sequence(packed, sequences, s));
  }
  AttentionVarlen(calls);
}
template void AttentionVarlen(const PackedAttentionArgs<Float16>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<BFloat16>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<float>&, const PackedSequences&);
template void AttentionVarlen(const PackedAttentionArgs<double>&, const PackedSequences&);

template <typename T>
void AttentionBackwardVarlen(const PackedAttentionArgs<T>& args, const PackedAttentionGradients<T>& gradients,
                             const PackedSequences& sequences) {
  const AttentionArgs<T> packed = AsBatch(args, sequences);
  CheckDisjoint(sequences.key_starts, sequences.key_lengths, "key_starts, key_lengths");
  const auto count = static_cast<std::int64_t>(sequences.query_starts.size());
  AttentionGradients<T> whole;
  whole.d_output = WithBatch(gradients.d_output);
  whole.d_lse = WithBatch(gradients.d_lse);
  whole.d_query = WithBatch(gradients.d_query);
  whole.d_key = WithBatch(gradients.d_key);
  whole.d_value = WithBatch(gradients.d_value);
  CheckAttentionBackward(packed, whole);
  const auto check = [&](const View<Accumulator<T>, 2>& array, const char* name) {
    CheckHeads(static_cast<bool>(array), array.shape[0], array.shape[1], array.stride[1],
               {count, packed.query.shape[1]}, name);
  };
  check(gradients.d_alibi_slopes, "d_alibi_slopes");
  check(gradients.d_sinks, "d_sinks");
  std::vector<AttentionBackwardCall<T>> calls;
  calls.reserve(sequences.query_starts.size());
  for (std::size_t s = 0; s < sequences.query_starts.size(); ++s) {
    const std::int64_t query = sequences.query_starts[s], queries = sequences.query_lengths[s];
    const std::int64_t key = sequences.key_starts[s], keys = sequences.key_lengths[s];
    AttentionBackwardCall<T>& call = calls.emplace_back();
    call.args = Sequence(packed, sequences, s);
    call.gradients.d_output = Rows(whole.d_output, query, queries);
    if (whole.d_lse) call.gradients.d_lse = Rows(whole.d_lse, query, queries);
    if (whole.d_query) call.gradients.d_query = Rows(whole.d_query, query, queries);
    if (whole.d_key) call.gradients.d_key = Rows(whole.d_key, key, keys);
    if (whole.d_value) call.gradients.d_value = Rows(whole.d_value, key, keys);
    call.gradients.d_alibi_slopes = HeadsOf(gradients.d_alibi_slopes, s);
    call.gradients.d_sinks = HeadsOf(gradients.d_sinks, s);
  }
  AttentionBackwardVarlen(calls);
}
#define HEADWISE_PACKED_BACKWARD(T)                                                                        \
  template void AttentionBackwardVarlen(const PackedAttentionArgs<T>&, const PackedAttentionGradients<T>&, \
                                        const PackedSequences&)
HEADWISE_PACKED_BACKWARD(Float16);
HEADWISE_PACKED_BACKWARD(BFloat16);
HEADWISE_PACKED_BACKWARD(float);
HEADWISE_PACKED_BACKWARD(double);
#undef HEADWISE_PACKED_BACKWARD

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
