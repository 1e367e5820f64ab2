// The functions that each target provides for the linear map.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kernel_set.h"
#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// A block of the output: rows [row_begin, row_end), columns [column_begin, column_end).
struct LinearBlock {
  std::int64_t row_begin, row_end, column_begin, column_end;
};

template <typename T>
struct LinearArgs {
  View<const T, 2> x, weight;
  const Accumulator<T>* bias;  // null: zero
  View<T, 2> out;
  Precision precision;
  const std::byte* packed;  // the weights as written by `pack`; null: not packed
};

// Blocks of the output begin at multiples of this column, which packed weights can be entered at.
constexpr std::int64_t kLinearBlockColumns = 512;

template <typename T>
struct LinearKernel {
  std::int64_t tile_rows;  // rows that are computed together; a block's rows should be a multiple of it
  std::int64_t (*max_gemv_rows)(const LinearArgs<T>& args);  // rows up to which GemvKernel is faster
  std::size_t (*scratch_bytes)(const LinearArgs<T>& args, const LinearBlock& largest);
  // Computes a block whose columns begin at a multiple of kLinearBlockColumns. The result of an element does not depend
  // on its block.
  void (*block)(const LinearArgs<T>& args, const LinearBlock& block, std::byte* scratch);

  // Packing of constant weights: bytes of all of them, and the packing of columns [begin, end), where begin is a
  // multiple of kLinearBlockColumns.
  std::size_t (*packed_bytes)(View<const T, 2> weight, Precision precision);
  void (*pack)(View<const T, 2> weight, Precision precision, std::int64_t begin, std::int64_t end, std::byte* packed);
};

// Few rows of x (small M): weights are read in place, with either axis of them contiguous.
template <typename T>
struct GemvKernel {
  std::size_t (*scratch_bytes)(const LinearArgs<T>& args, std::int64_t columns);
  // Columns [begin, end) of the output.
  void (*columns)(const LinearArgs<T>& args, std::int64_t begin, std::int64_t end, std::byte* scratch);
};

// Cost of packing a weight, in floating-point operations.
constexpr double kPackingWork = 8;

// Rows up to which reading the weights in place is faster than packing them for FMA.
constexpr std::int64_t kMaxGemvRows = 16;

// The kernels of the bf16 backends: AMX for all types but double, BF16 dot for float and BFloat16 (one term). Null in
// builds without them. Shapes at which FMA is faster are left to FMA by these kernels themselves (bf16_policy.h).
template <typename T>
const LinearKernel<T>* AmxLinearKernel();
template <typename T>
const LinearKernel<T>* DotLinearKernel();

// For the current target: the kernels of its matmul backend where it has one for T, else those of FMA.
template <typename T>
const LinearKernel<T>& GetLinearKernel();

// For the current target.
const KernelSet<LinearKernel>& ChosenLinearKernels();
const KernelSet<GemvKernel>& ChosenGemvKernels();

}  // namespace headwise
