#include "headwise/alibi.h"

#include "python/arrays.h"

namespace headwise::bindings {

void RegisterAlibi(py::module_& module) {
  module.def(
      "add_alibi",
      [](const py::array& scores, const py::array& slopes, std::int64_t offset, const py::array& out) {
        WithStoredType(scores, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 4>(scores, "scores");
          const auto* slope = ToVector<Accumulator<T>>(slopes, in.shape[1], "slopes");
          const auto to = ToView<T, 4>(out, "out");
          const ReleasedGil release;
          AddAlibi(in, slope, offset, to);
        });
      },
      py::arg("scores"), py::arg("slopes"), py::arg("offset"), py::arg("out"));
}

}  // namespace headwise::bindings
