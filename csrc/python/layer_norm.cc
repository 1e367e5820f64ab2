#include "headwise/layer_norm.h"

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

// Calls norm(x, gamma, beta, out) with the arrays as views.
template <class Norm>
void Normalize(const py::array& x, const OptionalArray& gamma, const OptionalArray& beta, const py::array& out,
               const Norm& norm) {
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
    norm(in, scale, shift, to);
  });
}

}  // namespace

void RegisterLayerNorm(py::module_& module) {
  module.def(
      "layer_normalization",
      [](const py::array& x, const OptionalArray& gamma, const OptionalArray& beta, double eps, const py::array& out) {
        Normalize(x, gamma, beta, out, [&](auto in, const auto* scale, const auto* shift, auto to) {
          LayerNorm(in, scale, shift, eps, to);
        });
      },
      py::arg("x"), py::arg("gamma").none(true), py::arg("beta").none(true), py::arg("eps"), py::arg("out"));
  module.def(
      "rms_norm",
      [](const py::array& x, const OptionalArray& gamma, double eps, const py::array& out) {
        Normalize(x, gamma, std::nullopt, out,
                  [&](auto in, const auto* scale, const auto*, auto to) { RmsNorm(in, scale, eps, to); });
      },
      py::arg("x"), py::arg("gamma").none(true), py::arg("eps"), py::arg("out"));
}

}  // namespace headwise::bindings
