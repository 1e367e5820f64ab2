// Whether this process may use the processor's tile unit.
#pragma once

namespace headwise {

// The processor has tiles and products of bfloat16, the system saves them, and has granted their use to this process:
// Linux wants to be asked once (Documentation/arch/x86/xstate.rst), before the first tile instruction of any thread.
bool AmxAvailable();

}  // namespace headwise
