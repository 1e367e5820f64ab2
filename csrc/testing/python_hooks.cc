// The hooks for tests in Python. Part of _core only in builds with HEADWISE_TEST_HOOKS; wheels have none.
#include "python/arrays.h"
#include "testing/hooks.h"

namespace headwise::bindings {

void RegisterTestHooks(py::module_& module) {
  module.def("_set_bf16_for_any_shape", &testing::SetBf16ForAnyShape, py::arg("on"));
}

}  // namespace headwise::bindings
