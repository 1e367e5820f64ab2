// The limits of the machine, measured: what the kernels could reach at most. Each is measured once per process.
#pragma once

namespace headwise::bench {

// Multiply-adds on registers alone, at two operations each: GFLOP/s of T, float or double, on the target that is set.
template <typename T>
double PeakGflops(int threads);

// A copy of one large array into another: gigabytes read and written per second.
double CopyGigabytes(int threads);

}  // namespace headwise::bench
