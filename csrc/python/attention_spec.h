// From the tuples headwise._base.attention_spec.AttentionSpec and PackedSequences to their C++ counterparts. Fields are
// read by position, which costs a small call less than attributes or keyword arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

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

// A mask or bias: axes of size 1 are broadcast to the shape of the scores.
template <typename T, typename U>
View<const T, 4> ToScoreView(const py::array& array, const char* name, const AttentionArgs<U>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  return Broadcast(ToView<const T, 4>(array, name), {batch, heads, query_len, args.key.shape[2]}, name);
}

// Fills in args.spec; the views of the arrays in `args` are set. The views of the spec refer to arrays that `fields`
// owns.
template <typename T>
void ReadSpec(const py::tuple& fields, AttentionArgs<T>& args) {
  using A = Accumulator<T>;
  CheckFields(fields, SpecField::kCount, "spec");
  AttentionSpec<T>& spec = args.spec;
  const std::int64_t heads = args.query.shape[1];
  spec.scale = Field<double>(fields, SpecField::kScale, "scale");
  spec.softcap = Field<double>(fields, SpecField::kSoftcap, "softcap");
  spec.left = Field<std::int64_t>(fields, SpecField::kLeft, "left");
  spec.right = Field<std::int64_t>(fields, SpecField::kRight, "right");
  spec.offset = Field<std::int64_t>(fields, SpecField::kOffset, "offset");
  spec.precision = ToPrecision(Field<std::string>(fields, SpecField::kPrecision, "precision"));
  for (const py::handle mask : ToTuple(fields[SpecField::kKeep], "keep")) {
    spec.keep.push_back(ToScoreView<std::uint8_t>(ToArray(mask, "keep"), "keep", args));
  }
  // Biases of the accumulator type first: the order of the additions decides the bits.
  for (const bool stored : {false, true}) {
    for (const py::handle item : ToTuple(fields[SpecField::kBias], "bias")) {
      const py::array bias = ToArray(item, "bias");
      if (stored != (kIs16Bit<T> && HasType<T>(bias))) continue;
      if (stored) {
        spec.bias.push_back(ToScoreView<T>(bias, "bias", args));
      } else {
        spec.bias.push_back(ToScoreView<A>(bias, "bias", args));
      }
    }
  }
  spec.alibi_slopes =
      ToVector<A>(ToOptionalArray(fields[SpecField::kAlibiSlopes], "alibi_slopes"), heads, "alibi_slopes");
  spec.sinks = ToVector<A>(ToOptionalArray(fields[SpecField::kSinks], "sinks"), heads, "sinks");
  if (const OptionalArray keep = ToOptionalArray(fields[SpecField::kDropoutKeep], "dropout_keep")) {
    spec.dropout_keep = ToScoreView<std::uint8_t>(*keep, "dropout_keep", args);
  }
  spec.dropout_scale = Field<double>(fields, SpecField::kDropoutScale, "dropout_scale");
}

}  // namespace headwise::bindings
