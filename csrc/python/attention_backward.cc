#include "headwise/attention_backward.h"

#include <pybind11/stl.h>

#include <cstddef>
#include <vector>

#include "headwise/attention.h"
#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {
namespace {

// AttentionArgs has its results as outputs, which the backward pass only reads.
template <typename T, int kRank>
View<T, kRank> ReadOnly(const py::array& array, const char* name) {
  const auto view = ToView<const T, kRank>(array, name);
  return {const_cast<T*>(view.data), view.shape, view.stride};
}

// A gradient of one number per head; null if there is none.
template <typename A>
A* ToHeads(const OptionalArray& array, std::int64_t heads, const char* name) {
  if (!array) return nullptr;
  const auto view = ToView<A, 1>(*array, name);
  CheckShape(view, {heads}, name);
  CheckContiguous(view, 0, name);
  return view.data;
}

// In the order in which ReadSpec reads the biases.
template <typename T>
std::vector<View<Accumulator<T>, 4>> ReadBiasGradients(const py::tuple& gradients, const py::tuple& spec) {
  const py::tuple biases = ToTuple(spec[SpecField::kBias], "bias");
  if (gradients.size() != biases.size()) Refuse("d_bias", "expected one entry for each bias");
  std::vector<View<Accumulator<T>, 4>> views;
  for (const bool stored : {false, true}) {
    for (std::size_t i = 0; i < biases.size(); ++i) {
      if (stored != (kIs16Bit<T> && HasType<T>(ToArray(biases[i], "bias")))) continue;
      views.push_back(ToView<Accumulator<T>, 4>(ToOptionalArray(gradients[i], "d_bias"), "d_bias"));
    }
  }
  return views;
}

}  // namespace

void RegisterAttentionBackward(py::module_& module) {
  module.def(
      "attention_backward",
      [](const py::array& d_output, const py::array& query, const py::array& key, const py::array& value,
         const py::array& output, const py::array& lse, const OptionalArray& d_lse, const OptionalArray& d_weights,
         const OptionalArray& d_query, const OptionalArray& d_key, const OptionalArray& d_value,
         const py::tuple& d_bias, const OptionalArray& d_alibi_slopes, const OptionalArray& d_sinks,
         const OptionalArray& d_relative_bias, const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          using A = Accumulator<T>;
          AttentionArgs<T> args;
          args.query = ToView<const T, 4>(query, "query");
          args.key = ToView<const T, 4>(key, "key");
          args.value = ToView<const T, 4>(value, "value");
          args.output = ReadOnly<T, 4>(output, "output");
          args.lse = ReadOnly<A, 3>(lse, "lse");
          const auto [batch, heads, query_len, head_dim] = args.query.shape;
          args.spec = ReadSpec<T>(spec, {batch, heads, query_len, args.key.shape[2]});
          AttentionGradients<T> gradients;
          gradients.d_output = ToView<const T, 4>(d_output, "d_output");
          gradients.d_lse = ToView<const A, 3>(d_lse, "d_lse");
          gradients.d_weights = ToView<const T, 4>(d_weights, "d_weights");
          gradients.d_query = ToView<T, 4>(d_query, "d_query");
          gradients.d_key = ToView<T, 4>(d_key, "d_key");
          gradients.d_value = ToView<T, 4>(d_value, "d_value");
          gradients.d_bias = ReadBiasGradients<T>(d_bias, spec);
          gradients.d_alibi_slopes = ToHeads<A>(d_alibi_slopes, heads, "d_alibi_slopes");
          gradients.d_sinks = ToHeads<A>(d_sinks, heads, "d_sinks");
          gradients.d_relative_bias = ToView<A, 4>(d_relative_bias, "d_relative_bias");
          const ReleasedGil release;
          AttentionBackward(args, gradients);
        });
      },
      py::arg("d_output"), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("lse"),
      py::arg("d_lse"), py::arg("d_weights"), py::arg("d_query"), py::arg("d_key"), py::arg("d_value"),
      py::arg("d_bias"), py::arg("d_alibi_slopes"), py::arg("d_sinks"), py::arg("d_relative_bias"), py::arg("spec"));
  module.def(
      "attention_varlen_backward",
      [](const py::array& d_output, const py::array& query, const py::array& key, const py::array& value,
         const py::array& output, const py::array& lse, const OptionalArray& d_lse, const OptionalArray& d_query,
         const OptionalArray& d_key, const OptionalArray& d_value, const OptionalArray& d_alibi_slopes,
         const OptionalArray& d_sinks, const py::tuple& sequences, const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          using A = Accumulator<T>;
          PackedAttentionArgs<T> args;
          args.query = ToView<const T, 3>(query, "query");
          args.key = ToView<const T, 3>(key, "key");
          args.value = ToView<const T, 3>(value, "value");
          args.output = ReadOnly<T, 3>(output, "output");
          args.lse = ReadOnly<A, 2>(lse, "lse");
          args.spec = ReadSpec<T>(spec, {1, args.query.shape[0], args.query.shape[1], args.key.shape[1]});
          PackedAttentionGradients<T> gradients;
          gradients.d_output = ToView<const T, 3>(d_output, "d_output");
          gradients.d_lse = ToView<const A, 2>(d_lse, "d_lse");
          gradients.d_query = ToView<T, 3>(d_query, "d_query");
          gradients.d_key = ToView<T, 3>(d_key, "d_key");
          gradients.d_value = ToView<T, 3>(d_value, "d_value");
          gradients.d_alibi_slopes = ToView<A, 2>(d_alibi_slopes, "d_alibi_slopes");
          gradients.d_sinks = ToView<A, 2>(d_sinks, "d_sinks");
          const PackedSequences packed = ReadSequences(sequences);
          const ReleasedGil release;
          AttentionBackwardVarlen(args, gradients, packed);
        });
      },
      py::arg("d_output"), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("lse"),
      py::arg("d_lse"), py::arg("d_query"), py::arg("d_key"), py::arg("d_value"), py::arg("d_alibi_slopes"),
      py::arg("d_sinks"), py::arg("sequences"), py::arg("spec"));
}

}  // namespace headwise::bindings
