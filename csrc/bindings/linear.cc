#include "headwise/linear.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"

namespace headwise::bindings {

void RegisterLinear(py::module_& module) {
  module.def(
      "linear",
      [](const py::array& x, const py::array& weight, const OptionalArray& bias, const py::array& out,
         const std::string& precision) {
        WithType(x, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 2>(x, "x");
          const auto matrix = ToView<const T, 2>(weight, "weight");
          const T* shift = ToVector<T>(bias, matrix.shape[1], "bias");
          const auto to = ToView<T, 2>(out, "out");
          const Precision level = ToPrecision(precision);
          const py::gil_scoped_release release;
          Linear(in, matrix, shift, to, level);
        });
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("precision"));
}

}  // namespace headwise::bindings
