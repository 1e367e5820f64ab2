#include "headwise/linear_attention.h"

#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {
namespace {

// A headwise._base.linear_attention_spec.LinearAttentionSpec.
template <typename T>
void ReadSpec(const py::tuple& spec, LinearAttentionArgs<T>& args) {
  CheckFields(spec, 5, "spec");
  args.elu = Field<bool>(spec, 0, "spec");
  args.normalize = Field<bool>(spec, 1, "spec");
  args.is_causal = Field<bool>(spec, 2, "spec");
  args.scale = Field<double>(spec, 3, "spec");
  args.chunk = Field<std::int64_t>(spec, 4, "spec");
  if (args.chunk < 1) Refuse("spec", "expected a chunk of at least 1");
}

// Rows of an array that is not empty, whose strides mean nothing.
template <typename T>
void CheckRows(const View<T, 4>& view, const char* name) {
  if (view.shape[0] * view.shape[1] * view.shape[2] != 0) CheckContiguous(view, 3, name);
}

template <typename T>
void CheckArrays(const LinearAttentionArgs<T>& args) {
  const auto &query = args.query.shape, &key = args.key.shape, &value = args.value.shape;
  if (key[0] != query[0] || key[3] != query[3]) Refuse("key", "shape does not match the other arrays");
  if (key[3] == 0) Refuse("key", "expected at least one feature");
  if (key[1] == 0 ? query[1] != 0 : query[1] % key[1] != 0 || query[1] < key[1]) {
    Refuse("query", "heads are no multiple of the key heads");
  }
  if (args.is_causal && query[2] != key[2]) Refuse("key", "expected as many keys as queries");
  if (!args.is_causal && (args.decay || args.beta)) Refuse("decay", "expected none without causality");
  if (value[0] != key[0] || value[1] != key[1] || value[2] != key[2]) {
    Refuse("value", "shape does not match the other arrays");
  }
  CheckShape(args.output, {query[0], query[1], query[2], value[3]}, "output");
  const std::array<std::int64_t, 4> state{key[0], key[1], key[3], value[3] + (args.normalize ? 1 : 0)};
  CheckShape(args.new_state, state, "new_state");
  if (args.state) {
    CheckShape(args.state, state, "state");
    CheckRows(args.state, "state");
  }
  CheckRows(args.query, "query");
  CheckRows(args.key, "key");
  CheckRows(args.value, "value");
  CheckRows(args.output, "output");
  CheckRows(args.new_state, "new_state");
}

}  // namespace

void RegisterLinearAttention(py::module_& module) {
  module.def(
      "linear_attention",
      [](const py::array& query, const py::array& key, const py::array& value, const OptionalArray& decay,
         const OptionalArray& beta, const OptionalArray& state, const py::array& output, const py::array& new_state,
         const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          using A = Accumulator<T>;
          LinearAttentionArgs<T> args;
          ReadSpec(spec, args);
          args.query = ToView<const T, 4>(query, "query");
          args.key = ToView<const T, 4>(key, "key");
          args.value = ToView<const T, 4>(value, "value");
          args.state = ToView<const A, 4>(state, "state");
          args.output = ToView<T, 4>(output, "output");
          args.new_state = ToView<A, 4>(new_state, "new_state");
          const auto& tokens = args.key.shape;
          if (decay) {
            const auto view = ToView<const A, 4>(*decay, "decay");
            args.decay =
                Broadcast(view, {tokens[0], tokens[1], tokens[2], view.shape[3] == 1 ? 1 : tokens[3]}, "decay");
          }
          if (beta) args.beta = Broadcast(ToView<const A, 3>(*beta, "beta"), {tokens[0], tokens[1], tokens[2]}, "beta");
          CheckArrays(args);
          const ReleasedGil release;
          LinearAttention(args);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("decay").none(true), py::arg("beta").none(true),
      py::arg("state").none(true), py::arg("output"), py::arg("new_state"), py::arg("spec"));
}

}  // namespace headwise::bindings
