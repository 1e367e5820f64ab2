#include "headwise/linear.h"

#include <pybind11/stl.h>

#include <array>
#include <variant>

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

using Matrix = std::array<std::int64_t, 2>;  // (depth, columns)

// A weight matrix, of which one axis is contiguous.
template <typename T>
View<const T, 2> ToMatrix(const py::array& weight) {
  const auto matrix = ToView<const T, 2>(weight, "weight");
  if (matrix.stride[0] != 1 && matrix.stride[1] != 1) Refuse("weight", "neither axis is contiguous");
  return matrix;
}

// function(X()) for x of the type of the weights, W, or of float32 with 16-bit weights.
template <typename W, class Function>
void WithTypeOfX(const py::array& x, const Function& function) {
  if constexpr (kIs16Bit<W>) {
    if (HasType<float>(x)) return function(float());
  }
  function(W());
}

template <typename T>
void CheckProduct(const View<const T, 2>& x, const Matrix& weight, const View<T, 2>& out) {
  if (x.shape[1] != weight[0]) Refuse("x", "shape does not match the weight");
  CheckShape(out, {x.shape[0], weight[1]}, "out");
  CheckContiguous(x, 1, "x");
  CheckContiguous(out, 1, "out");
}

// A PackedLinear that keeps the arrays of its weight and bias alive, whatever shape their owner gives them meanwhile.
class Packed {
 public:
  Packed(const py::array& weight, const OptionalArray& bias, const std::string& precision)
      : weight_(weight), bias_(bias) {
    WithStoredType(weight, [&](auto type) {
      using T = decltype(type);
      const auto matrix = ToMatrix<T>(weight);
      const auto* shift = ToVector<Accumulator<T>>(bias, matrix.shape[1], "bias");
      shape_ = matrix.shape;
      const Precision level = ToPrecision(precision);
      const ReleasedGil release;
      linear_.emplace<PackedLinear<T>>(matrix, shift, level);
    });
  }

  void operator()(const py::array& x, const py::array& out) const {
    std::visit([&](const auto& linear) { Run(linear, x, out); }, linear_);
  }

 private:
  void Run(const std::monostate&, const py::array&, const py::array&) const {}

  template <typename W>
  void Run(const PackedLinear<W>& linear, const py::array& x, const py::array& out) const {
    WithTypeOfX<W>(x, [&](auto type) {
      using X = decltype(type);
      const auto in = ToView<const X, 2>(x, "x");
      const auto to = ToView<X, 2>(out, "out");
      CheckProduct(in, shape_, to);
      const ReleasedGil release;
      linear(in, to);
    });
  }

  py::array weight_;
  OptionalArray bias_;
  Matrix shape_{};
  std::variant<std::monostate, PackedLinear<Float16>, PackedLinear<BFloat16>, PackedLinear<float>, PackedLinear<double>>
      linear_;
};

}  // namespace

void RegisterLinear(py::module_& module) {
  module.def(
      "linear",
      [](const py::array& x, const py::array& weight, const OptionalArray& bias, const py::array& out,
         const std::string& precision) {
        WithStoredType(weight, [&](auto weight_type) {
          using W = decltype(weight_type);
          WithTypeOfX<W>(x, [&](auto x_type) {
            using X = decltype(x_type);
            const auto in = ToView<const X, 2>(x, "x");
            const auto matrix = ToMatrix<W>(weight);
            const auto* shift = ToVector<Accumulator<X>>(bias, matrix.shape[1], "bias");
            const auto to = ToView<X, 2>(out, "out");
            CheckProduct(in, matrix.shape, to);
            const Precision level = ToPrecision(precision);
            const ReleasedGil release;
            Linear(in, matrix, shift, to, level);
          });
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
