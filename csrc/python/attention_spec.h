// From the tuples headwise._base.attention_spec.AttentionSpec and PackedSequences to their C++ counterparts. Fields are
// read by position, which costs a small call less than attributes or keyword arguments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
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
    kCount
  };
};

struct SequencesField {  // PackedSequences, in its order
  enum : std::size_t { kQueryStarts, kQueryLengths, kKeyStarts, kKeyLengths, kOffsets, kCount };
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
  return spec;
}

}  // namespace headwise::bindings
