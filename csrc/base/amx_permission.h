// AMX tiles: whether the machine has them, and the permission that Linux wants asked for.
#pragma once

namespace headwise {

// The processor has AMX-BF16, and the operating system saves the tile registers.
bool HasAmx();

// Asks the system to let this process use tiles; false if it refuses.
bool RequestAmxPermission();

}  // namespace headwise
