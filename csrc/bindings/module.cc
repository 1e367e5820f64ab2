#include <new>

#include "bindings/arrays.h"

PYBIND11_MODULE(_core, module) {
  using namespace headwise::bindings;
  module.doc() = "The native backend of headwise. Arguments are those of headwise._backend.Backend.";
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "no memory for what the call computes with, besides its result");
    }
  });
  RegisterAlibi(module);
  RegisterAttention(module);
  RegisterAttentionVarlen(module);
  RegisterLayerNorm(module);
  RegisterLinear(module);
  RegisterRope(module);
  RegisterRuntime(module);
  RegisterSoftmax(module);
}
