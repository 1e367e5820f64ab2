// The functions that each target provides for the linear map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// A block of the output: rows [row_begin, row_end), columns [column_begin, column_end).
struct LinearBlock {
  std::int64_t row_begin, row_end, column_begin, column_end;
};

// x and the output are of X, weights of W: the same type, or float and a 16-bit type.
template <typename X, typename W = X>
struct LinearArgs {
  View<const X, 2> x;
  View<const W, 2> weight;
  const Accumulator<X>* bias;  // null: zero
  View<X, 2> out;
  Precision precision;
  const std::byte* packed;  // the weights as written by LinearPacking::pack; null: not packed
};

// Blocks of the output begin at multiples of this column, which packed weights can be entered at.
constexpr std::int64_t kLinearBlockColumns = 512;

// Few rows of x (small M): weights are read in place, with either axis of them contiguous, or as panels, where they are
// packed.
template <typename X, typename W = X>
struct GemvKernel {
  std::size_t (*scratch_bytes)(const LinearArgs<X, W>& args, std::int64_t columns);
  // Columns [begin, end) of the output; begin is a multiple of kGemvMultiple.
  void (*columns)(const LinearArgs<X, W>& args, std::int64_t begin, std::int64_t end, std::byte* scratch);
};
constexpr std::int64_t kGemvMultiple = 64;  // a multiple of every panel

// Packing of constant weights.
template <typename W>
struct LinearPacking {
  std::size_t (*packed_bytes)(View<const W, 2> weight, Precision precision);  // of all of them
  // Packs columns [begin, end), where begin is a multiple of kLinearBlockColumns.
  void (*pack)(View<const W, 2> weight, Precision precision, std::int64_t begin, std::int64_t end, std::byte* packed);
  bool (*panels)(Precision precision);                               // whether these are panels, which GemvKernel reads
  void (*widen)(const W* from, std::int64_t n, Accumulator<W>* to);  // null unless W is a 16-bit type
};

template <typename X, typename W = X>
struct LinearKernel {
  std::int64_t tile_rows;  // rows that are computed together; a block's rows should be a multiple of it
  std::int64_t (*max_gemv_rows)(const LinearArgs<X, W>& args);  // rows up to which `gemv` is faster
  std::size_t (*scratch_bytes)(const LinearArgs<X, W>& args, const LinearBlock& largest);
  // Computes a block whose columns begin at a multiple of kLinearBlockColumns. The result of an element does not depend
  // on its block.
  void (*block)(const LinearArgs<X, W>& args, const LinearBlock& block, std::byte* scratch);
  GemvKernel<X, W> gemv;
  LinearPacking<W> packing;
};

// The kernels of one target.
struct LinearKernelSet {
  LinearKernel<Float16> float16;
  LinearKernel<BFloat16> bfloat16;
  LinearKernel<float> float32;
  LinearKernel<double> float64;
  LinearKernel<float, Float16> float16_weight;
  LinearKernel<float, BFloat16> bfloat16_weight;

  template <typename X, typename W>
  constexpr const LinearKernel<X, W>& Of() const {
    if constexpr (std::is_same_v<X, double>) {
      return float64;
    } else if constexpr (std::is_same_v<X, Float16>) {
      return float16;
    } else if constexpr (std::is_same_v<X, BFloat16>) {
      return bfloat16;
    } else if constexpr (std::is_same_v<W, Float16>) {
      return float16_weight;
    } else if constexpr (std::is_same_v<W, BFloat16>) {
      return bfloat16_weight;
    } else {
      return float32;
    }
  }
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

// For the current target: the kernels of its matmul backend where it has one for the types, else those of FMA.
template <typename X, typename W = X>
const LinearKernel<X, W>& GetLinearKernel();

// For the current target.
const LinearKernelSet& ChosenLinearKernels();

}  // namespace headwise
