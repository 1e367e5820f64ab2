// The table of functions that each target provides for the linear map.
#pragma once

#include <cstddef>
#include <cstdint>

#include "headwise/tensor.h"

namespace headwise {

// A rectangle of the output.
struct LinearBlock {
  std::int64_t row_begin, row_end, column_begin, column_end;
};

template <typename T>
struct LinearKernel {
  std::size_t (*scratch_bytes)(const LinearBlock& largest, std::int64_t depth);
  void (*block)(View<const T, 2> x, View<const T, 2> weight, const T* bias, View<T, 2> out, const LinearBlock& block,
                std::byte* scratch);
  // Columns [begin, end) of the output, without packing; for one contiguous axis of weight and few rows.
  void (*few_rows)(View<const T, 2> x, View<const T, 2> weight, const T* bias, View<T, 2> out, std::int64_t begin,
                   std::int64_t end);
};

// That of the chosen target.
template <typename T>
const LinearKernel<T>& GetLinearKernel();

}  // namespace headwise
