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
          CheckShape(to, in.shape, "out");
          CheckContiguous(in, 3, "scores");
          CheckContiguous(to, 3, "out");
          constexpr std::int64_t kMax = std::int64_t{1} << 61;  // sums with an index do not overflow
          if (offset > kMax || offset < -kMax) Refuse("offset", "more than 2^61 in size");
          const ReleasedGil release;
          AddAlibi(in, slope, offset, to);
        });
      },
      py::arg("scores"), py::arg("slopes"), py::arg("offset"), py::arg("out"));
}

}  // namespace headwise::bindings
