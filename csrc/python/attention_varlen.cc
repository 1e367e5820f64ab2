#include <pybind11/stl.h>

#include "headwise/attention.h"
#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {

void RegisterAttentionVarlen(py::module_& module) {
  module.def(
      "attention_varlen",
      [](const py::array& query, const py::array& key, const py::array& value, const py::array& output,
         const OptionalArray& lse, const py::tuple& sequences, const py::tuple& spec) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          PackedAttentionArgs<T> args;
          args.query = ToView<const T, 3>(query, "query");
          ReadKeysAndValues<T>(key, value, spec, args);
          args.output = ToView<T, 3>(output, "output");
          args.lse = ToView<Accumulator<T>, 2>(lse, "lse");
          args.spec = ReadSpec<T>(spec, {1, args.query.shape[0], args.query.shape[1], args.key.shape[1]});
          const PackedSequences packed = ReadSequences(sequences);
          const ReleasedGil release;
          AttentionVarlen(args, packed);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("lse"), py::arg("sequences"),
      py::arg("spec"));
}

}  // namespace headwise::bindings
