// The tables of functions that each target provides for the linear map.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// A rectangle of the output.
struct LinearBlock {
  std::int64_t row_begin, row_end, column_begin, column_end;
};

template <typename T>
struct LinearArgs {
  View<const T, 2> x, weight;
  const Accumulator<T>* bias;  // null: zero
  View<T, 2> out;
  Precision precision;
  const std::byte* packed;  // the weights as `pack` leaves them; null: not packed yet
};

// Block columns that packed weights can be entered at.
constexpr std::int64_t kLinearBlockColumns = 512;

template <typename T>
struct LinearKernel {
  std::int64_t tile_rows;  // that are computed together: blocks of rows are best a multiple of it
  std::int64_t (*few_rows)(const LinearArgs<T>& args);  // up to so many, LinearFewKernel is faster
  std::size_t (*scratch_bytes)(const LinearArgs<T>& args, const LinearBlock& largest);
  // A block whose columns begin at a multiple of kLinearBlockColumns. An element's result does not depend on the block
  // it is in.
  void (*block)(const LinearArgs<T>& args, const LinearBlock& block, std::byte* scratch);

  // All weights, to be kept: their size, and columns [begin, end) of them, begin a multiple of kLinearBlockColumns.
  std::size_t (*packed_bytes)(View<const T, 2> weight, Precision precision);
  void (*pack)(View<const T, 2> weight, Precision precision, std::int64_t begin, std::int64_t end, std::byte* packed);
};

// Few rows, without packing; for one contiguous axis of weight.
template <typename T>
struct LinearFewKernel {
  std::size_t (*scratch_bytes)(const LinearArgs<T>& args, std::int64_t columns);
  // Columns [begin, end) of the output.
  void (*columns)(const LinearArgs<T>& args, std::int64_t begin, std::int64_t end, std::byte* scratch);
};

// Up to here, reading the weights where they lie is faster than packing them.
template <typename T>
std::int64_t LinearFewRows(const LinearArgs<T>&) {
  return 16;
}

// In parts of bfloat16, on tiles (all but double) or by vectors (float and BFloat16, one part); null where this build
// has none.
template <typename T>
const LinearKernel<T>* AmxLinearKernel();
template <typename T>
const LinearKernel<T>* DotLinearKernel();

// For the current target: the kernels of its matmul backend where it has one for T, else those of FMA.
template <typename T>
const LinearKernel<T>& GetLinearKernel();

// For the current target.
const KernelSet<LinearKernel>& ChosenLinearKernels();
const KernelSet<LinearFewKernel>& ChosenLinearFewKernels();

}  // namespace headwise
