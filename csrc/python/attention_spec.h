// From the tuples headwise._base.attention_spec.AttentionSpec and PackedSequences to their C++ counterparts. Fields are
// read by position, which costs a small call less than attributes or keyword arguments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "headwise/attention.h"
#include "python/arrays.h"

namespace headwise::bindings {

struct SpecField {  // AttentionSpec, in its order
  enum : std::size_t {
    kScale,
    kSoftcap,
    kLeft,
    kRight,
    kOffset,
    kPrecision,
    kKeep,
    kBias,
    kAlibiSlopes,
    kSinks,
    kDropoutKeep,
    kDropoutScale,
    kKeyLengths,
    kOffsets,
    kKeyScaling,
    kValueScaling,
    kBlocks,
    kScoreMod,
    kRelativeBias,
    kCount
  };
};

struct ScalingField {  // Int8Scaling, in its order
  enum : std::size_t { kFactors, kBits, kCount };
};

struct SequencesField {  // PackedSequences, in its order
  enum : std::size_t { kQueryStarts, kQueryLengths, kKeyStarts, kKeyLengths, kOffsets, kCount };
};

struct BlocksField {  // Blocks, in its order
  enum : std::size_t { kIndex, kBits, kQuerySize, kKeySize, kFirstQuery, kCount };
};

inline void CheckFields(const py::tuple& fields, std::size_t count, const char* name) {
  if (fields.size() != count) {
    throw py::type_error(std::string(name) + ": expected a tuple of " + std::to_string(count) + " fields");
  }
}

template <typename T>
T Field(const py::tuple& fields, std::size_t index, const char* name) {
  try {
    return fields[index].cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(name) + ": not of the type that the field has");
  }
}

// A copy, so that no other thread changes it between the check and its use.
inline std::vector<std::int64_t> CopyVector(const py::array& array, std::int64_t count, const char* name) {
  const std::int64_t* values = ToVector<std::int64_t>(array, count, name);
  return {values, values + count};
}

using ScoresShape = std::array<std::int64_t, 4>;  // (batch, heads, query_len, key_len)

// A mask or bias: axes of size 1 are broadcast to the shape of the scores.
template <typename T>
View<const T, 4> ToScoreView(const py::array& array, const char* name, const ScoresShape& scores) {
  return Broadcast(ToView<const T, 4>(array, name), scores, name);
}

// The index, which decides addresses, is copied. The bits refer to an array that `fields` owns.
inline CallBlocks ReadBlocks(const py::tuple& fields) {
  CheckFields(fields, BlocksField::kCount, "blocks");
  BlockMask mask;
  const py::array array = ToArray(fields[BlocksField::kIndex], "blocks");
  if (!(array.flags() & py::array::c_style)) throw py::value_error("blocks: an index that is not contiguous");
  const auto index = ToView<const std::int32_t, 4>(array, "blocks");
  mask.shape = index.shape;
  mask.index.assign(index.data, index.data + array.size());
  mask.query_size = Field<std::int64_t>(fields, BlocksField::kQuerySize, "query_size");
  mask.key_size = Field<std::int64_t>(fields, BlocksField::kKeySize, "key_size");
  const py::array bits_array = ToArray(fields[BlocksField::kBits], "blocks");
  if (!(bits_array.flags() & py::array::c_style)) throw py::value_error("blocks: bits that are not contiguous");
  const auto bits = ToView<const std::uint64_t, 3>(bits_array, "blocks");
  mask.patterns = bits.shape[0], mask.bits = bits.data;
  if (mask.patterns > 0 && (bits.shape[1] != mask.query_size || bits.shape[2] != mask.Words())) {
    throw py::value_error("blocks: bits of another shape than the blocks");
  }
  return {std::make_shared<const BlockMask>(std::move(mask)), 0,
          Field<std::int64_t>(fields, BlocksField::kFirstQuery, "first_query")};
}

// The views of the spec refer to arrays that `fields` owns.
template <typename T>
AttentionSpec<T> ReadSpec(const py::tuple& fields, const ScoresShape& scores) {
  using A = Accumulator<T>;
  CheckFields(fields, SpecField::kCount, "spec");
  AttentionSpec<T> spec;
  const std::int64_t heads = scores[1];
  spec.scale = Field<double>(fields, SpecField::kScale, "scale");
  spec.softcap = Field<double>(fields, SpecField::kSoftcap, "softcap");
  spec.left = Field<std::int64_t>(fields, SpecField::kLeft, "left");
  spec.right = Field<std::int64_t>(fields, SpecField::kRight, "right");
  spec.offset = Field<std::int64_t>(fields, SpecField::kOffset, "offset");
  spec.precision = ToPrecision(Field<std::string>(fields, SpecField::kPrecision, "precision"));
  for (const py::handle mask : ToTuple(fields[SpecField::kKeep], "keep")) {
    spec.keep.push_back(ToScoreView<std::uint8_t>(ToArray(mask, "keep"), "keep", scores));
  }
  // Biases of the accumulator type first: the order of the additions decides the bits.
  for (const bool stored : {false, true}) {
    for (const py::handle item : ToTuple(fields[SpecField::kBias], "bias")) {
      const py::array bias = ToArray(item, "bias");
      if (stored != (kIs16Bit<T> && HasType<T>(bias))) continue;
      if (stored) {
        spec.bias.push_back(ToScoreView<T>(bias, "bias", scores));
      } else {
        spec.bias.push_back(ToScoreView<A>(bias, "bias", scores));
      }
    }
  }
  spec.alibi_slopes =
      ToVector<A>(ToOptionalArray(fields[SpecField::kAlibiSlopes], "alibi_slopes"), heads, "alibi_slopes");
  spec.sinks = ToVector<A>(ToOptionalArray(fields[SpecField::kSinks], "sinks"), heads, "sinks");
  if (const OptionalArray keep = ToOptionalArray(fields[SpecField::kDropoutKeep], "dropout_keep")) {
    spec.dropout_keep = ToScoreView<std::uint8_t>(*keep, "dropout_keep", scores);
  }
  spec.dropout_scale = Field<double>(fields, SpecField::kDropoutScale, "dropout_scale");
  if (const OptionalArray lengths = ToOptionalArray(fields[SpecField::kKeyLengths], "key_lengths")) {
    spec.key_lengths = CopyVector(*lengths, scores[0], "key_lengths");
    spec.offsets = CopyVector(ToArray(fields[SpecField::kOffsets], "offsets"), scores[0], "offsets");
  }
  if (!fields[SpecField::kScoreMod].is_none()) throw py::type_error("score_mod: expected None");
  if (const py::handle blocks = fields[SpecField::kBlocks]; !blocks.is_none()) {
    spec.blocks = ReadBlocks(ToTuple(blocks, "blocks"));
  }
  if (const OptionalArray bias = ToOptionalArray(fields[SpecField::kRelativeBias], "relative_bias")) {
    const auto view = ToView<const A, 4>(*bias, "relative_bias");
    ScoresShape shape = scores;
    shape[3] = view.shape[3];
    const std::int64_t stride = view.stride[3];
    spec.relative_bias = Broadcast(view, shape, "relative_bias");
    spec.relative_bias.stride[3] = stride;
  }
  return spec;
}

// The factors of rows of int8, (kv_heads, key_len) or with a batch axis before.
inline View<const float, 3> ReadScales(const py::handle& field, const char* name) {
  const py::array array = ToArray(field, name);
  if (array.ndim() == 3) return ToView<const float, 3>(array, name);
  const auto scales = ToView<const float, 2>(array, name);
  return {scales.data, {1, scales.shape[0], scales.shape[1]}, {0, scales.stride[0], scales.stride[1]}};
}

// An array (kv_heads, keys, dim) with a batch axis, or one that has it.
template <typename K>
View<const K, 4> ReadKeys(const py::array& array, const char* name) {
  if (array.ndim() == 4) return ToView<const K, 4>(array, name);
  const auto keys = ToView<const K, 3>(array, name);
  return {
      keys.data, {1, keys.shape[0], keys.shape[1], keys.shape[2]}, {0, keys.stride[0], keys.stride[1], keys.stride[2]}};
}

// The bits of rows of int8, likewise.
inline View<const std::uint8_t, 4> ReadBits(const py::handle& field, const char* name) {
  const auto bits = ReadKeys<std::byte>(ToArray(field, name), name);
  return {reinterpret_cast<const std::uint8_t*>(bits.data), bits.shape, bits.stride};
}

template <typename K>
StoredKeys<K> ReadStored(const py::array& key, const py::array& value) {
  return {ReadKeys<K>(key, "key"), ReadKeys<K>(value, "value"), {}, {}, {}, {}};
}

// Keys and values beside queries of T. If they have another type, only the shapes of args.key and args.value are set.
template <typename T, class Args>
void ReadKeysAndValues(const py::array& key, const py::array& value, const py::tuple& fields, Args& args) {
  constexpr int kRank = std::is_same_v<Args, AttentionArgs<T>> ? 4 : 3;
  CheckFields(fields, SpecField::kCount, "spec");
  if (!std::is_same_v<T, float> || HasType<float>(key)) {
    args.key = ToView<const T, kRank>(key, "key");
    args.value = ToView<const T, kRank>(value, "value");
    return;
  }
  ReadLayout(key, kRank, args.key.shape.data(), args.key.stride.data(), "key");
  ReadLayout(value, kRank, args.value.shape.data(), args.value.stride.data(), "value");
  if (HasType<Float16>(key)) {
    args.stored = ReadStored<Float16>(key, value);
  } else if (HasType<BFloat16>(key)) {
    args.stored = ReadStored<BFloat16>(key, value);
  } else if (HasType<std::int8_t>(key)) {
    auto stored = ReadStored<std::int8_t>(key, value);
    const py::tuple keys = ToTuple(fields[SpecField::kKeyScaling], "key_scaling");
    const py::tuple values = ToTuple(fields[SpecField::kValueScaling], "value_scaling");
    CheckFields(keys, ScalingField::kCount, "key_scaling");
    CheckFields(values, ScalingField::kCount, "value_scaling");
    stored.key_scale = ReadScales(keys[ScalingField::kFactors], "key_scaling");
    stored.value_scale = ReadScales(values[ScalingField::kFactors], "value_scaling");
    stored.key_bits = ReadBits(keys[ScalingField::kBits], "key_scaling");
    stored.value_bits = ReadBits(values[ScalingField::kBits], "value_scaling");
    args.stored = stored;
  } else {
    throw py::type_error("key: dtype does not match the other arrays");
  }
}

inline PackedSequences ReadSequences(const py::tuple& sequences) {
  CheckFields(sequences, SequencesField::kCount, "sequences");
  const std::int64_t count = ToArray(sequences[SequencesField::kQueryStarts], "query_starts").size();
  const auto vector = [&](std::size_t field, const char* name) {
    return CopyVector(ToArray(sequences[field], name), count, name);
  };
  return {vector(SequencesField::kQueryStarts, "query_starts"), vector(SequencesField::kQueryLengths, "query_lengths"),
          vector(SequencesField::kKeyStarts, "key_starts"), vector(SequencesField::kKeyLengths, "key_lengths"),
          vector(SequencesField::kOffsets, "offsets")};
}

}  // namespace headwise::bindings
