// From an operation to the function of the chosen instruction set.
//
// Highway compiles each kernel once per target and lays the copies out in a table (HWY_EXPORT). The choice of the table
// entry is ours and not Highway's process-wide one, which other libraries may share: forcing a target here changes
// nothing for them.
//
// Include after hwy/foreach_target.h and hwy/highway.h.
#pragma once

#include "hwy/highway.h"
#include "hwy/targets.h"

namespace headwise {

// Initialised before first use; changed by SetTarget.
hwy::ChosenTarget& ChosenTarget();

// Whether the chosen target has tiles besides its vectors (amx.h). Only where this build and this processor have them.
bool AmxChosen();

}  // namespace headwise

#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define HEADWISE_DISPATCH(function) HWY_STATIC_DISPATCH(function)
#else
#define HEADWISE_DISPATCH(function) (*HWY_DISPATCH_TABLE(function)[headwise::ChosenTarget().GetIndex()])
#endif
