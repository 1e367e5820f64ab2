#include "headwise/attention.h"

#include <pybind11/stl.h>

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

template <typename T, typename U>
View<const T, 4> ToScoreView(const py::array& array, const char* name, const AttentionArgs<U>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  return Broadcast(ToView<const T, 4>(array, name), {batch, heads, query_len, args.key.shape[2]}, name);
}

}  // namespace

void RegisterAttention(py::module_& module) {
  module.def(
      "attention",
      [](const py::array& query, const py::array& key, const py::array& value, const py::array& output,
         const OptionalArray& weights, const OptionalArray& lse, const std::vector<py::array>& keep,
         const std::vector<py::array>& bias, const OptionalArray& drop, const OptionalArray& slopes,
         const OptionalArray& sinks, double scale, double softcap, std::int64_t left, std::int64_t right,
         std::int64_t offset, double drop_scale, const std::string& precision) {
        WithStoredType(query, [&](auto type) {
          using T = decltype(type);
          using A = Accumulator<T>;
          AttentionArgs<T> args;
          args.query = ToView<const T, 4>(query, "query");
          args.key = ToView<const T, 4>(key, "key");
          args.value = ToView<const T, 4>(value, "value");
          args.output = ToView<T, 4>(output, "output");
          args.weights = ToView<T, 4>(weights, "weights");
          args.lse = ToView<A, 3>(lse, "lse");
          for (const py::array& mask : keep) args.spec.keep.push_back(ToScoreView<std::uint8_t>(mask, "keep", args));
          for (const py::array& added : bias) {
            if (kIs16Bit<T> && HasType<T>(added)) {
              args.spec.half_bias.push_back(ToScoreView<T>(added, "bias", args));
            } else {
              args.spec.bias.push_back(ToScoreView<A>(added, "bias", args));
            }
          }
          if (drop) args.spec.dropout_keep = ToScoreView<std::uint8_t>(*drop, "drop", args);
          args.spec.alibi_slopes = ToVector<A>(slopes, args.query.shape[1], "slopes");
          args.spec.sinks = ToVector<A>(sinks, args.query.shape[1], "sinks");
          args.spec.scale = scale;
          args.spec.softcap = softcap;
          args.spec.left = left;
          args.spec.right = right;
          args.spec.offset = offset;
          args.spec.dropout_scale = drop_scale;
          args.spec.precision = ToPrecision(precision);
          const ReleasedGil release;
          Attention(args);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"), py::arg("weights"), py::arg("lse"),
      py::arg("keep"), py::arg("bias"), py::arg("drop"), py::arg("slopes"), py::arg("sinks"), py::arg("scale"),
      py::arg("softcap"), py::arg("left"), py::arg("right"), py::arg("offset"), py::arg("drop_scale"),
      py::arg("precision"));
}

}  // namespace headwise::bindings
