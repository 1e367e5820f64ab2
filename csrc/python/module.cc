#include <new>

#include "headwise/version.h"
#include "python/arrays.h"

// py::mod_gil_not_used() is not declared, so a free-threaded interpreter takes the GIL back when it imports this. What
// is kept here would do without: atomics, and packed weights that are added and never changed. The package would not: a
// layer counts references to learn whether anyone else can change its weights (_layer.py), which means nothing there,
// and a KVCache moves rows under views of them.
PYBIND11_MODULE(_core, module) {
  using namespace headwise::bindings;
  module.doc() = "The native backend of headwise. Arguments are those of headwise._runtime.backend.Backend.";
  module.attr("__version__") = HEADWISE_VERSION;
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
#ifdef HEADWISE_TEST_HOOKS
  RegisterTestHooks(module);
#endif
}
