#include "headwise/runtime.h"

#include <pybind11/stl.h>

#include "base/threads/thread_pool.h"
#include "python/arrays.h"

namespace headwise::bindings {

void RegisterRuntime(py::module_& module) {
  module.def("list_targets", &ListTargets);
  module.def("get_target", &GetTarget);
  module.def("set_target", &SetTarget, py::arg("name"));
  module.def("get_num_threads", &GetNumThreads);
  module.def("set_num_threads", &SetNumThreads, py::arg("n"));
  module.def("set_worker_processors", &SetWorkerProcessors, py::arg("processors"));
}

}  // namespace headwise::bindings
