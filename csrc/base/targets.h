// The target (instruction set) that kernels run on. The public side is headwise/runtime.h; base/dispatch.h leads from
// the target to its kernels.
#pragma once

#include "base/cpu_features.h"

namespace headwise {

// The matmul backend of the current target; supported by this build, this processor and the system.
MatmulBackend ChosenMatmulBackend();

// Selects the default target unless one has been selected already. Kernels are looked up through the selected target,
// so every operation does this by itself; call it to have the (locked) initialisation done at a known time.
void EnsureTargetChosen();

}  // namespace headwise
