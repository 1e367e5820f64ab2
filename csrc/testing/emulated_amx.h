// For tests on machines without a tile unit (HEADWISE_EMULATE_AMX): its instructions raise a signal there, whose
// handler does what the unit would have done. So what is tested is the code that others run, down to its last byte.
#pragma once

namespace headwise {

// From now on, in this process. Takes AVX-512.
bool EmulateTiles();

}  // namespace headwise
