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

// Calls norm(d_out, x, gamma, d_x, d_gamma, d_beta) with the arrays as views and pointers.
template <class Norm>
void NormalizeBackward(const py::array& d_out, const py::array& x, const OptionalArray& gamma, const py::array& d_x,
                       const py::array& d_gamma, const OptionalArray& d_beta, const Norm& norm) {
  WithStoredType(x, [&](auto type) {
    using T = decltype(type);
    const auto in = ToView<const T, 2>(x, "x");
    const auto gradient = ToView<const T, 2>(d_out, "d_out");
    const auto* scale = ToVector<T>(gamma, in.shape[1], "gamma");
    const auto to = ToView<T, 2>(d_x, "d_x");
    CheckShape(gradient, in.shape, "d_out");
    CheckShape(to, in.shape, "d_x");
    CheckContiguous(in, 1, "x");
    CheckContiguous(gradient, 1, "d_out");
    CheckContiguous(to, 1, "d_x");
    const auto output = [&](const OptionalArray& array, const char* name) {
      const auto view = ToView<Accumulator<T>, 1>(array, name);
      if (array && view.shape[0] != in.shape[1]) Refuse(name, "shape does not match the other arrays");
      if (array) CheckContiguous(view, 0, name);
      return view.data;
    };
    auto *by_gamma = output(d_gamma, "d_gamma"), *by_beta = output(d_beta, "d_beta");
    const ReleasedGil release;
    norm(gradient, in, scale, to, by_gamma, by_beta);
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
  module.def(
      "layer_normalization_backward",
      [](const py::array& d_out, const py::array& x, const OptionalArray& gamma, double eps, const py::array& d_x,
         const py::array& d_gamma, const py::array& d_beta) {
        NormalizeBackward(d_out, x, gamma, d_x, d_gamma, d_beta,
                          [&](auto gradient, auto in, const auto* scale, auto to, auto* by_gamma, auto* by_beta) {
                            LayerNormBackward(gradient, in, scale, eps, to, by_gamma, by_beta);
                          });
      },
      py::arg("d_out"), py::arg("x"), py::arg("gamma").none(true), py::arg("eps"), py::arg("d_x"), py::arg("d_gamma"),
      py::arg("d_beta"));
  module.def(
      "rms_norm_backward",
      [](const py::array& d_out, const py::array& x, const OptionalArray& gamma, double eps, const py::array& d_x,
         const py::array& d_gamma) {
        NormalizeBackward(d_out, x, gamma, d_x, d_gamma, std::nullopt,
                          [&](auto gradient, auto in, const auto* scale, auto to, auto* by_gamma, auto*) {
                            RmsNormBackward(gradient, in, scale, eps, to, by_gamma);
                          });
      },
      py::arg("d_out"), py::arg("x"), py::arg("gamma").none(true), py::arg("eps"), py::arg("d_x"), py::arg("d_gamma"));
}

}  // namespace headwise::bindings
