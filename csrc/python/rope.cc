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
          if (in.shape[3] % 2 != 0) Refuse("x", "an odd dimension");
          auto half = in.shape;
          half[3] /= 2;
          const auto table = [&](const py::array& array, const char* name) {
            const auto view = Broadcast(ToView<const Accumulator<T>, 4>(array, name), half, name);
            CheckContiguous(view, 3, name);
            return view;
          };
          const auto cosines = table(cos, "cos"), sines = table(sin, "sin");
          const auto to = ToView<T, 4>(out, "out");
          CheckShape(to, in.shape, "out");
          CheckContiguous(in, 3, "x");
          CheckContiguous(to, 3, "out");
          const ReleasedGil release;
          ApplyRope(in, cosines, sines, interleaved, to);
        });
      },
      py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("out"), py::arg("interleaved"));
}

}  // namespace headwise::bindings
