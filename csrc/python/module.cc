#include <new>
#ifndef _WIN32
#include <pthread.h>
#endif

#include "headwise/version.h"
#include "python/arrays.h"

namespace headwise::bindings {
namespace {

// pybind11 takes the GIL by PyGILState_Ensure, which up to Python 3.11 waits forever in a sub-interpreter whose thread
// belongs to the main interpreter. Later versions do not wait, but NumPy's arrays are not supported there either.
bool InMainInterpreter() { return PyInterpreterState_Get() == PyInterpreterState_Main(); }

constexpr char kMainOnly[] = "it runs in the main interpreter only, and this is a sub-interpreter";

void RememberMainThread() {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
#ifndef _WIN32
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
#endif
}

}  // namespace
}  // namespace headwise::bindings

// Two checks: PyInit__core before pybind11 does anything, and PYBIND11_MODULE's body because Python 3.13 and later call
// PyInit__core in the main interpreter. The macro gives pybind11's own function another name.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core();
extern "C" PyObject* PyInit__core_in_main_interpreter();
PyObject* PyInit__core() {
  if (headwise::bindings::InMainInterpreter()) return PyInit__core_in_main_interpreter();
  PyErr_SetString(PyExc_ImportError, headwise::bindings::kMainOnly);
  return nullptr;
}

// py::mod_gil_not_used() is not declared, so a free-threaded interpreter enables the GIL when it imports this module.
// The extension does not need the GIL (its state is atomics, and packed weights that are never changed), but the
// package does: layers count references to see whether other code can change their weights, which is meaningless
// without a GIL, and KVCache moves rows that views refer to.
#define PyInit__core PyInit__core_in_main_interpreter
PYBIND11_MODULE(_core, module) {
  using namespace headwise::bindings;  // NOLINT(google-build-using-namespace): of this function alone
  using headwise::CallInterrupted;
  if (!InMainInterpreter()) throw py::import_error(kMainOnly);
  module.doc() =
      "The native backend of headwise. Its functions are those of the protocol headwise._runtime.backend.Backend.";
  module.attr("__version__") = HEADWISE_VERSION;
  // NOLINTNEXTLINE(performance-unnecessary-value-param): a function of pybind11's type
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "Out of memory: could not allocate scratch space");
    } catch (const CallInterrupted&) {
      // The exception of the signal handler is set already (ReleasedGil).
    }
  });
  RememberMainThread();
  RegisterActivation(module);
  RegisterAlibi(module);
  RegisterAttention(module);
  RegisterAttentionBackward(module);
  RegisterAttentionStatistics(module);
  RegisterAttentionVarlen(module);
  RegisterLayerNorm(module);
  RegisterLinear(module);
  RegisterLinearAttention(module);
  RegisterRope(module);
  RegisterRuntime(module);
  RegisterSoftmax(module);
#ifdef HEADWISE_TEST_HOOKS
  RegisterTestHooks(module);
#endif
}
#undef PyInit__core
