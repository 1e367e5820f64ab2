// What this processor multiplies bfloat16 with, and this process's right to it.
#pragma once

namespace headwise {

// Besides multiply-adds of float32: an instruction on vectors (matmul/bf16_dot-inl.h), or a unit of its own for tiles
// (matmul/amx.h).
enum class BFloat16Unit { kNone, kDot, kAmx };

// The processor has it, and the system saves its registers. Those of kDot are AVX-512's, which are not asked for here.
bool Has(BFloat16Unit unit);

// Asks the system for the use of it, before its first instruction on any thread; false if it refuses. Linux wants to be
// asked for tiles (Documentation/arch/x86/xstate.rst). Not before somebody wants them: signal frames grow, for all the
// process.
bool Request(BFloat16Unit unit);

// For tests: tiles at shapes, too, where multiply-adds are faster and taken instead. Off at first.
bool TilesForAnyShape();
void SetTilesForAnyShape(bool on);

}  // namespace headwise
