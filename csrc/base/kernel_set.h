// The kernels of one operation on one target, one for each element type.
#pragma once

#include <type_traits>

#include "headwise/dtype.h"

namespace headwise {

template <template <typename T> class Kernel>
struct KernelSet {
  Kernel<Float16> float16;
  Kernel<BFloat16> bfloat16;
  Kernel<float> float32;
  Kernel<double> float64;

  template <typename T>
  constexpr const Kernel<T>& Of() const {
    if constexpr (std::is_same_v<T, Float16>) {
      return float16;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bfloat16;
    } else if constexpr (std::is_same_v<T, float>) {
      return float32;
    } else {
      static_assert(std::is_same_v<T, double>, "no kernels for this element type");
      return float64;
    }
  }
};

}  // namespace headwise
