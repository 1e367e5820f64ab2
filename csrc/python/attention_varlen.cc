#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "headwise/attention.h"
#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {
namespace {

// Of a packed array of one batch entry.
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

void Check(bool holds, const char* message) {
  if (!holds) throw py::value_error(message);
}

// Where each sequence is: first entries and lengths along an axis of `size`.
struct Ranges {
  Ranges(const py::array& starts, const py::array& lengths, std::int64_t count, std::int64_t size, const char* name)
      : start(ToVector<std::int64_t>(starts, count, name)), length(ToVector<std::int64_t>(lengths, count, name)) {
    for (std::int64_t s = 0; s < count; ++s) {
      if (start[s] < 0 || length[s] < 0 || start[s] > size || length[s] > size - start[s]) {
        throw py::value_error(std::string(name) + ": sequence " + std::to_string(s) + " is not within " +
                              std::to_string(size) + " rows");
      }
    }
  }
  const std::int64_t *start, *length;
};

// Those of all sequences, in arrays whose shapes go together.
template <typename T>
void CheckPacked(const AttentionArgs<T>& packed) {
  const auto [batch, heads, rows, head_dim] = packed.query.shape;
  const std::int64_t kv_heads = packed.key.shape[1], value_dim = packed.value.shape[3];
  Check(kv_heads == 0 ? heads == 0 : heads % kv_heads == 0, "key: heads that do not divide those of query");
  Check(packed.key.shape[3] == head_dim, "key: another head_dim than query");
  Check(packed.value.shape[1] == kv_heads && packed.value.shape[2] == packed.key.shape[2],
        "value: other heads or rows than key");
  Check(packed.output.shape == decltype(packed.output.shape){1, heads, rows, value_dim},
        "output: not of the result's shape");
  Check(!packed.lse || packed.lse.shape == decltype(packed.lse.shape){1, heads, rows},
        "lse: not of the result's shape");
}

}  // namespace

void RegisterAttentionVarlen(py::module_& module) {
  module.def(
      "attention_varlen",
      [](const py::array& query, const py::array& key, const py::array& value, const py::array& output,
         const OptionalArray& lse, const py::tuple& sequences, const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          AttentionArgs<T> packed;
          packed.query = WithBatch(ToView<const T, 3>(query, "query"));
          packed.key = WithBatch(ToView<const T, 3>(key, "key"));
          packed.value = WithBatch(ToView<const T, 3>(value, "value"));
          packed.output = WithBatch(ToView<T, 3>(output, "output"));
          packed.lse = WithBatch(ToView<Accumulator<T>, 2>(lse, "lse"));
          CheckPacked(packed);
          ReadSpec(spec, packed);
          Check(packed.spec.keep.empty() && packed.spec.bias.empty() && !packed.spec.dropout_keep,
                "spec: packed sequences have no masks, biases or dropout");

          CheckFields(sequences, SequencesField::kCount, "sequences");
          const py::array query_starts = ToArray(sequences[SequencesField::kQueryStarts], "query_starts");
          const std::int64_t count = query_starts.size();
          const Ranges queries(query_starts, ToArray(sequences[SequencesField::kQueryLengths], "query_lengths"), count,
                               packed.query.shape[2], "query_starts, query_lengths");
          const Ranges keys(ToArray(sequences[SequencesField::kKeyStarts], "key_starts"),
                            ToArray(sequences[SequencesField::kKeyLengths], "key_lengths"), count, packed.key.shape[2],
                            "key_starts, key_lengths");
          const std::int64_t* offset =
              ToVector<std::int64_t>(ToArray(sequences[SequencesField::kOffsets], "offsets"), count, "offsets");
          std::vector<AttentionArgs<T>> calls(static_cast<std::size_t>(count), packed);
          for (std::int64_t s = 0; s < count; ++s) {
            AttentionArgs<T>& args = calls[static_cast<std::size_t>(s)];
            args.query = Rows(packed.query, queries.start[s], queries.length[s]);
            args.key = Rows(packed.key, keys.start[s], keys.length[s]);
            args.value = Rows(packed.value, keys.start[s], keys.length[s]);
            args.output = Rows(packed.output, queries.start[s], queries.length[s]);
            args.lse = Rows(packed.lse, queries.start[s], queries.length[s]);
            args.spec.offset = offset[s];
          }
          const ReleasedGil release;
          AttentionVarlen(calls);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("lse"), py::arg("sequences"),
      py::arg("spec"));
}

}  // namespace headwise::bindings
