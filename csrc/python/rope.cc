#include "headwise/rope.h"

#include "python/arrays.h"

namespace headwise::bindings {

void RegisterRope(py::module_& module) {
  module.def(
      "apply_rope",
      [](const py::array& x, const py::array& cos, const py::array& sin, const py::array& out, bool interleaved) {
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 4>(x, "x");
          auto half = in.shape;
          half[3] /= 2;
          const auto cosines = Broadcast(ToView<const Accumulator<T>, 4>(cos, "cos"), half, "cos");
          const auto sines = Broadcast(ToView<const Accumulator<T>, 4>(sin, "sin"), half, "sin");
          const auto to = ToView<T, 4>(out, "out");
          const ReleasedGil release;
          ApplyRope(in, cosines, sines, interleaved, to);
        });
      },
      py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("out"), py::arg("interleaved"));
}

}  // namespace headwise::bindings
