#include "headwise/layer_norm.h"

#include "python/arrays.h"

namespace headwise::bindings {

void RegisterLayerNorm(py::module_& module) {
  module.def(
      "layer_normalization",
      [](const py::array& x, const py::array& gamma, const py::array& beta, double eps, const py::array& out) {
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 2>(x, "x");
          const auto* scale = ToVector<T>(gamma, in.shape[1], "gamma");
          const auto* shift = ToVector<T>(beta, in.shape[1], "beta");
          const auto to = ToView<T, 2>(out, "out");
          CheckShape(to, in.shape, "out");
          CheckContiguous(in, 1, "x");
          CheckContiguous(to, 1, "out");
          const ReleasedGil release;
          LayerNorm(in, scale, shift, eps, to);
        });
      },
      py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("eps"), py::arg("out"));
}

}  // namespace headwise::bindings
