#include "headwise/softmax.h"

#include "python/arrays.h"

namespace headwise::bindings {
namespace {

// kOutRank: 3, or 2 if the axis is reduced.
template <int kOutRank, class Operation>
void Define(py::module_& module, const char* name, const Operation& operation) {
  module.def(
      name,
      [operation](const py::array& x, const py::array& out) {
        WithStoredType(x, [&](auto type) {
          using T = decltype(type);
          const auto in = ToView<const T, 3>(x, "x");
          const auto to = ToView<T, kOutRank>(out, "out");
          const auto [outer, n, inner] = in.shape;
          const int adjacent = inner == 1 ? 1 : 2;
          CheckContiguous(in, adjacent, "x");
          if constexpr (kOutRank == 3) {
            CheckShape(to, in.shape, "out");
            CheckContiguous(to, adjacent, "out");
          } else {
            CheckShape(to, {outer, inner}, "out");
            CheckContiguous(to, 1, "out");
          }
          const ReleasedGil release;
          operation(in, to);
        });
      },
      py::arg("x"), py::arg("out"));
}

}  // namespace

void RegisterSoftmax(py::module_& module) {
  Define<3>(module, "softmax", [](auto x, auto out) { Softmax(x, out); });
  Define<3>(module, "log_softmax", [](auto x, auto out) { LogSoftmax(x, out); });
  Define<2>(module, "logsumexp", [](auto x, auto out) { LogSumExp(x, out); });
}

}  // namespace headwise::bindings
