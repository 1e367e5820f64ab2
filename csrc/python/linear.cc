#include "headwise/linear.h"

#include <pybind11/stl.h>

#include <variant>

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

// A PackedLinear that keeps the arrays of its weight and bias alive.
class Packed {
 public:
  Packed(const py::array& weight, const OptionalArray& bias, const std::string& precision)
      : weight_(weight), bias_(bias) {
    WithStoredType(weight, [&](auto type) {
      using T = decltype(type);
      const auto matrix = ToView<const T, 2>(weight, "weight");
      const auto* shift = ToVector<Accumulator<T>>(bias, matrix.shape[1], "bias");
      const Precision level = ToPrecision(precision);
      const ReleasedGil release;
      linear_.emplace<PackedLinear<T>>(matrix, shift, level);
    });
  }

  void operator()(const py::array& x, const py::array& out) const {
    WithStoredType(weight_, [&](auto type) {
      using T = decltype(type);
      const auto in = ToView<const T, 2>(x, "x");
      const auto to = ToView<T, 2>(out, "out");
      if (in.shape[1] != weight_.shape(0) || to.shape[0] != in.shape[0] || to.shape[1] != weight_.shape(1)) {
        throw py::value_error("x or out: the shape does not match the packed weights");
      }
      const auto& linear = std::get<PackedLinear<T>>(linear_);
      const ReleasedGil release;
      linear(in, to);
    });
  }

 private:
  py::array weight_;
  OptionalArray bias_;
  std::variant<std::monostate, PackedLinear<Float16>, PackedLinear<BFloat16>, PackedLinear<float>, PackedLinear<double>>
      linear_;
};

}  // namespace

void RegisterLinear(py::module_& module) {
  module.def(
      "linear",
      [](const py::array& x, const py::array& weight, const OptionalArray& bias, const py::array& out,
         const std::string& precision) {
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 2>(x, "x");
          const auto matrix = ToView<const T, 2>(weight, "weight");
          const auto* shift = ToVector<Accumulator<T>>(bias, matrix.shape[1], "bias");
          const auto to = ToView<T, 2>(out, "out");
          const Precision level = ToPrecision(precision);
          const ReleasedGil release;
          Linear(in, matrix, shift, to, level);
        });
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("precision"));

  py::class_<Packed>(module, "PackedLinear").def("__call__", &Packed::operator(), py::arg("x"), py::arg("out"));
  module.def(
      "pack_linear",
      [](const py::array& weight, const OptionalArray& bias, const std::string& precision) {
        return std::make_unique<Packed>(weight, bias, precision);
      },
      py::arg("weight"), py::arg("bias"), py::arg("precision"));
}

}  // namespace headwise::bindings
