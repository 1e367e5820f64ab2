#include "headwise/attention.h"

#include <pybind11/stl.h>

#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {

void RegisterAttention(py::module_& module) {
  module.def(
      "attention",
      [](const py::array& query, const py::array& key, const py::array& value, const py::array& output,
         const OptionalArray& weights, const OptionalArray& lse, const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          AttentionArgs<T> args;
          args.query = ToView<const T, 4>(query, "query");
          ReadKeysAndValues<T>(key, value, spec, args);
          args.output = ToView<T, 4>(output, "output");
          args.weights = ToView<T, 4>(weights, "weights");
          args.lse = ToView<Accumulator<T>, 3>(lse, "lse");
          const auto [batch, heads, query_len, head_dim] = args.query.shape;
          args.spec = ReadSpec<T>(spec, {batch, heads, query_len, args.key.shape[2]});
          const ReleasedGil release;
          Attention(args);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("weights"), py::arg("lse"),
      py::arg("spec"));
}

}  // namespace headwise::bindings
