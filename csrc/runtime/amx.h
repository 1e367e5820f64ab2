// The processor's tile unit, and this process's right to it.
#pragma once

namespace headwise {

// The processor has tiles and products of bfloat16, and the system saves them.
bool AmxAvailable();

// Asks Linux for the use of tiles (Documentation/arch/x86/xstate.rst), before the first tile instruction of any thread;
// false if it refuses. Not before somebody wants them: signal frames grow, for all the process.
bool RequestAmx();

// For tests: tiles at shapes, too, where multiply-adds are faster and taken instead. Off at first.
bool TilesForAnyShape();
void SetTilesForAnyShape(bool on);

}  // namespace headwise
