// From an operation to its kernels for the current target.
//
// Highway compiles each kernel once per target; HWY_EXPORT(Function) makes a table with the address of every copy. Each
// operation exports one function, which returns the KernelSet of its target. The entry is picked by headwise's own
// ChosenTarget() and not by Highway's process-wide one, which other libraries may share: SetTarget changes nothing for
// them.
//
// Include after hwy/foreach_target.h and hwy/highway.h.
#pragma once

#include "base/targets.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace headwise {

// Initialised at the first call; changed by SetTarget.
hwy::ChosenTarget& ChosenTarget();

}  // namespace headwise

// The current target's copy of a function given to HWY_EXPORT. A macro, because Highway names the table by a macro, and
// makes none in a build for a single target.
#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define HEADWISE_DISPATCH(function) HWY_STATIC_DISPATCH(function)
#else
#define HEADWISE_DISPATCH(function) (*HWY_DISPATCH_TABLE(function)[headwise::ChosenTarget().GetIndex()])
#endif
