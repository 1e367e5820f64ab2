// Measured limits of the machine for the kernels. Each is measured once per process.
#pragma once

namespace headwise::bench {

// GFLOP/s of FMAs in registers, at two operations each, for T = float or double on the current target.
template <typename T>
double PeakGflops(int threads);

// GB/s, read and written, of copying one large array to another.
double CopyGigabytes(int threads);

}  // namespace headwise::bench
