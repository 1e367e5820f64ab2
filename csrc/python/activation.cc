#include "headwise/activation.h"

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

Activation ToActivation(const std::string& name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  throw py::value_error("function: '" + name + "'");
}

// (rows, n) like another view, with contiguous rows.
template <typename T>
View<T, 2> ToRows(const OptionalArray& array, const std::array<std::int64_t, 2>& shape, const char* name) {
  const auto view = ToView<T, 2>(array, name);
  if (array) {
    CheckShape(view, shape, name);
    CheckContiguous(view, 1, name);
  }
  return view;
}

}  // namespace

void RegisterActivation(py::module_& module) {
  module.def(
      "activation",
      [](const py::array& x, const OptionalArray& up, const py::array& out, const std::string& function) {
        const Activation f = ToActivation(function);
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto shape = ToView<const T, 2>(x, "x").shape;
          const auto in = ToRows<const T>(x, shape, "x"), factor = ToRows<const T>(up, shape, "up");
          const auto to = ToRows<T>(out, shape, "out");
          const ReleasedGil release;
          Activate(f, in, factor, to);
        });
      },
      py::arg("x"), py::arg("up").none(true), py::arg("out"), py::arg("function"));
  module.def(
      "activation_backward",
      [](const py::array& d_out, const py::array& x, const OptionalArray& up, const py::array& d_x,
         const OptionalArray& d_up, const std::string& function) {
        const Activation f = ToActivation(function);
        if (up.has_value() != d_up.has_value()) Refuse("d_up", "expected together with up");
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto shape = ToView<const T, 2>(x, "x").shape;
          const auto in = ToRows<const T>(x, shape, "x"), factor = ToRows<const T>(up, shape, "up");
          const auto gradient = ToRows<const T>(d_out, shape, "d_out");
          const auto to = ToRows<T>(d_x, shape, "d_x"), to_up = ToRows<T>(d_up, shape, "d_up");
          const ReleasedGil release;
          ActivateBackward(f, gradient, in, factor, to, to_up);
        });
      },
      py::arg("d_out"), py::arg("x"), py::arg("up").none(true), py::arg("d_x"), py::arg("d_up").none(true),
      py::arg("function"));
}

}  // namespace headwise::bindings
