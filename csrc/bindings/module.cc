#include "bindings/arrays.h"

PYBIND11_MODULE(_core, module) {
  using namespace headwise::bindings;
  module.doc() = "The native backend of headwise. Arguments are those of headwise._backend.Backend.";
  module.attr("__version__") = HEADWISE_VERSION;
  RegisterAlibi(module);
  RegisterAttention(module);
  RegisterAttentionVarlen(module);
  RegisterLayerNorm(module);
  RegisterLinear(module);
  RegisterRope(module);
  RegisterRuntime(module);
  RegisterSoftmax(module);
}
