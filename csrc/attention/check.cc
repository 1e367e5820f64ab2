// Checks of arguments: std::invalid_argument, with a message that begins with the argument's name.
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "headwise/attention.h"

namespace headwise {
namespace {

// Sums of a query's index, `offset` and `left` or `right` do not overflow.
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 61;

// The softcap and its inverse, times scores of usual size, are normal numbers of float32.
constexpr double kMinSoftcap = 1e-30, kMaxSoftcap = 1e30;

[[noreturn]] void Fail(const char* name, const std::string& message) {
  throw std::invalid_argument(std::string(name) + ": " + message);
}

template <std::size_t kRank>
std::string Text(const std::array<std::int64_t, kRank>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < kRank; ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + ")";
}

// The view has `shape`, whose sizes are >= 0, and memory unless it has no elements. Returns whether it has elements:
// only then do strides matter.
template <typename T, int kRank>
bool CheckShape(const View<T, kRank>& view, const std::array<std::int64_t, kRank>& shape, const char* name) {
  bool same = true, negative = false, empty = false;
  for (int axis = 0; axis < kRank; ++axis) {
    same &= view.shape[axis] == shape[axis];
    negative |= shape[axis] < 0;
    empty |= shape[axis] == 0;
  }
  if (!same) Fail(name, "shape " + Text(view.shape) + ", expected " + Text(shape));
  if (negative) Fail(name, "shape " + Text(shape) + ", expected sizes >= 0");
  if (!empty && !view) Fail(name, "null data");
  return !empty;
}

template <typename T>
void CheckArray(const View<T, 4>& view, const std::array<std::int64_t, 4>& shape, const char* name) {
  if (CheckShape<T, 4>(view, shape, name) && shape[3] > 1 && view.stride[3] != 1) {
    Fail(name, "last stride " + std::to_string(view.stride[3]) + ", expected a contiguous last axis");
  }
}

template <typename S>
void CheckStored(const StoredKeys<S>* stored, const std::array<std::int64_t, 4>& key,
                 const std::array<std::int64_t, 4>& value) {
  if (!stored) return;
  CheckArray(stored->key, key, "key");
  CheckArray(stored->value, value, "value");
  if constexpr (std::is_same_v<S, std::int8_t>) {
    for (const auto& [scale, name] :
         {std::pair(&stored->key_scale, "key_scale"), std::pair(&stored->value_scale, "value_scale")}) {
      if (CheckShape<const float, 3>(*scale, {key[0], key[1], key[2]}, name) && key[2] > 1 && scale->stride[2] != 1) {
        Fail(name, "last stride " + std::to_string(scale->stride[2]) + ", expected a contiguous last axis");
      }
    }
    CheckArray(stored->key_bits, {key[0], key[1], key[2], (key[3] + 7) / 8}, "key_bits");
    CheckArray(stored->value_bits, {value[0], value[1], value[2], (value[3] + 7) / 8}, "value_bits");
  }
}

// A mask or bias.
template <typename T>
void CheckScoreView(const View<T, 4>& view, const std::array<std::int64_t, 4>& scores, const char* name) {
  if (CheckShape<T, 4>(view, scores, name) && scores[3] > 1 && view.stride[3] != 0 && view.stride[3] != 1) {
    Fail(name, "last stride " + std::to_string(view.stride[3]) + ", expected 0 or 1");
  }
}

// Every query and key of the call has a block, and every block of the index a pattern.
void CheckBlocks(const CallBlocks& blocks, const std::array<std::int64_t, 4>& scores) {
  const BlockMask& mask = *blocks.mask;
  const auto& shape = mask.shape;
  if (mask.query_size < 1 || mask.key_size < 1 || mask.query_size > kMaxPosition || mask.key_size > kMaxPosition) {
    Fail("blocks",
         "blocks of " + std::to_string(mask.query_size) + " queries and " + std::to_string(mask.key_size) + " keys");
  }
  std::size_t size = 1;
  for (const std::int64_t n : shape) {
    if (n < 0 || (n > 0 && size > mask.index.size() / static_cast<std::size_t>(n)))
      Fail("blocks", "an index of another shape");
    size *= static_cast<std::size_t>(n);
  }
  if (size != mask.index.size()) Fail("blocks", "an index of another shape");
  const auto covers = [](std::int64_t count, std::int64_t block, std::int64_t first, std::int64_t length) {
    return first >= 0 && first <= kMaxPosition && (first + length + block - 1) / block <= count;
  };
  const bool entries =
      shape[0] == 1 || (blocks.batch >= 0 && blocks.batch <= shape[0] && scores[0] <= shape[0] - blocks.batch);
  if (!entries || (shape[1] != 1 && shape[1] != scores[1]) ||
      !covers(shape[2], mask.query_size, blocks.query, scores[2]) || !covers(shape[3], mask.key_size, 0, scores[3])) {
    Fail("blocks", "shape " + Text(shape) + " of blocks, which do not cover the scores " + Text(scores));
  }
  for (const std::int32_t entry : mask.index) {
    if (entry < 0 || entry - BlockMask::kFirstBits >= mask.patterns) {
      Fail("blocks", "entry " + std::to_string(entry) + ", of " + std::to_string(mask.patterns) + " patterns");
    }
  }
  if (mask.patterns > 0 && mask.bits == nullptr) Fail("blocks", "no patterns");
}

}  // namespace

template <typename T>
void CheckAttention(const AttentionArgs<T>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2], value_dim = args.value.shape[3];
  CheckArray(args.query, args.query.shape, "query");
  const std::array<std::int64_t, 4> key_shape{batch, kv_heads, key_len, head_dim};
  const std::array<std::int64_t, 4> value_shape{batch, kv_heads, key_len, value_dim};
  if (std::holds_alternative<std::monostate>(args.stored)) {
    CheckArray(args.key, key_shape, "key");
    CheckArray(args.value, value_shape, "value");
  } else {
    if (!std::is_same_v<T, float>) Fail("stored", "given for queries of another type than float32");
    if (args.key.shape != key_shape) Fail("key", "shape " + Text(args.key.shape) + ", expected " + Text(key_shape));
    if (args.value.shape != value_shape) {
      Fail("value", "shape " + Text(args.value.shape) + ", expected " + Text(value_shape));
    }
    CheckStored(std::get_if<StoredKeys<Float16>>(&args.stored), key_shape, value_shape);
    CheckStored(std::get_if<StoredKeys<BFloat16>>(&args.stored), key_shape, value_shape);
    CheckStored(std::get_if<StoredKeys<std::int8_t>>(&args.stored), key_shape, value_shape);
  }
  if (kv_heads == 0 ? heads != 0 : heads % kv_heads != 0) {
    Fail("key", std::to_string(kv_heads) + " heads, by which the " + std::to_string(heads) +
                    " heads of query are not divisible");
  }
  CheckArray(args.output, {batch, heads, query_len, value_dim}, "output");
  const std::array<std::int64_t, 4> scores{batch, heads, query_len, key_len};
  if (args.weights) CheckArray(args.weights, scores, "weights");
  if (args.lse) CheckShape<Accumulator<T>, 3>(args.lse, {batch, heads, query_len}, "lse");
  if (args.statistics) Fail("statistics", "given to another function than AttentionStatistics");

  const AttentionSpec<T>& spec = args.spec;
  if (spec.softcap != 0 && !(spec.softcap >= kMinSoftcap && spec.softcap <= kMaxSoftcap)) {
    Fail("softcap", std::to_string(spec.softcap) + ", expected 0, or a number from 1e-30 to 1e30");
  }
  const auto check_position = [](std::int64_t position, const char* name) {
    if (position > kMaxPosition || position < -kMaxPosition) {
      Fail(name, std::to_string(position) + ", expected at most 2^61 in size");
    }
  };
  check_position(spec.left, "left");
  check_position(spec.right, "right");
  check_position(spec.offset, "offset");
  for (const auto& keep : spec.keep) CheckScoreView(keep, scores, "keep");
  for (const Bias<T>& bias : spec.bias) {
    std::visit([&](const auto& view) { CheckScoreView(view, scores, "bias"); }, bias);
  }
  if (spec.blocks) CheckBlocks(spec.blocks, scores);
  if (spec.dropout_keep) CheckScoreView(spec.dropout_keep, scores, "dropout_keep");
  if (spec.relative_bias) {
    const std::int64_t entries = spec.relative_bias.shape[3];
    if (entries % 2 != 1) Fail("relative_bias", std::to_string(entries) + " entries, expected an odd number");
    CheckArray(spec.relative_bias, {batch, heads, query_len, entries}, "relative_bias");
  }
  if (spec.key_lengths.empty() && spec.offsets.empty()) return;
  for (const auto& [vector, name] :
       {std::pair(&spec.key_lengths, "key_lengths"), std::pair(&spec.offsets, "offsets")}) {
    if (static_cast<std::int64_t>(vector->size()) != batch) {
      Fail(name,
           std::to_string(vector->size()) + " values, expected " + std::to_string(batch) + ", one per batch entry");
    }
  }
  for (const std::int64_t length : spec.key_lengths) {
    if (length < 0 || length > key_len) {
      Fail("key_lengths", std::to_string(length) + ", expected 0 to " + std::to_string(key_len));
    }
  }
  for (const std::int64_t offset : spec.offsets) check_position(offset, "offsets");
}
template void CheckAttention(const AttentionArgs<Float16>&);
template void CheckAttention(const AttentionArgs<BFloat16>&);
template void CheckAttention(const AttentionArgs<float>&);
template void CheckAttention(const AttentionArgs<double>&);

template <typename T>
void CheckAttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients) {
  CheckAttention(args);
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::array<std::int64_t, 4> scores{batch, heads, query_len, args.key.shape[2]};
  const std::array<std::int64_t, 3> rows{batch, heads, query_len};
  CheckShape<Accumulator<T>, 3>(args.lse, rows, "lse");
  CheckArray(gradients.d_output, args.output.shape, "d_output");
  if (gradients.d_lse) CheckShape<const Accumulator<T>, 3>(gradients.d_lse, rows, "d_lse");
  if (gradients.d_weights) CheckArray(gradients.d_weights, scores, "d_weights");
  if (gradients.d_query) CheckArray(gradients.d_query, args.query.shape, "d_query");
  if (gradients.d_key) CheckArray(gradients.d_key, args.key.shape, "d_key");
  if (gradients.d_value) CheckArray(gradients.d_value, args.value.shape, "d_value");
  const std::size_t biases = args.spec.bias.size();
  if (!gradients.d_bias.empty() && gradients.d_bias.size() != biases) {
    Fail("d_bias", std::to_string(gradients.d_bias.size()) + " arrays, expected " + std::to_string(biases));
  }
  for (const auto& d_bias : gradients.d_bias) {
    if (!d_bias) continue;
    std::array<std::int64_t, 4> shape = scores;  // but 1 where summed
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (d_bias.shape[axis] == 1) shape[axis] = 1;
    }
    CheckArray(d_bias, shape, "d_bias");
  }
  const auto check_vector = [](bool wanted, bool given, const char* name) {
    if (wanted && !given) Fail(name, std::string("wanted, but the spec has no ") + (name + 2));
  };
  check_vector(gradients.d_alibi_slopes, args.spec.alibi_slopes, "d_alibi_slopes");
  check_vector(gradients.d_sinks, args.spec.sinks, "d_sinks");
  if (!gradients.d_relative_bias) return;
  check_vector(true, static_cast<bool>(args.spec.relative_bias), "d_relative_bias");
  std::array<std::int64_t, 4> shape = args.spec.relative_bias.shape;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    if (gradients.d_relative_bias.shape[axis] == 1) shape[axis] = 1;
  }
  CheckArray(gradients.d_relative_bias, shape, "d_relative_bias");
}
template void CheckAttentionBackward(const AttentionArgs<Float16>&, const AttentionGradients<Float16>&);
template void CheckAttentionBackward(const AttentionArgs<BFloat16>&, const AttentionGradients<BFloat16>&);
template void CheckAttentionBackward(const AttentionArgs<float>&, const AttentionGradients<float>&);
template void CheckAttentionBackward(const AttentionArgs<double>&, const AttentionGradients<double>&);

}  // namespace headwise
