#include <new>

#include "headwise/version.h"
#include "python/arrays.h"

// py::mod_gil_not_used() is not declared, so a free-threaded interpreter enables the GIL when it imports this module.
// The extension does not need the GIL (its state is atomics, and packed weights that are never changed), but the
// package does: layers count references to see whether other code can change their weights, which is meaningless
// without a GIL, and KVCache moves rows that views refer to.
PYBIND11_MODULE(_core, module) {
  using namespace headwise::bindings;
  module.doc() =
      "The native backend of headwise. Its functions are those of the protocol headwise._runtime.backend.Backend.";
  module.attr("__version__") = HEADWISE_VERSION;
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "Out of memory: could not allocate scratch space");
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
#ifdef HEADWISE_TEST_HOOKS
  RegisterTestHooks(module);
#endif
}
