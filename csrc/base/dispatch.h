// From an operation to the function of the chosen instruction set.
//
// Highway compiles each kernel once per target and lays the copies out in a table (HWY_EXPORT). The choice of the table
// entry is ours and not Highway's process-wide one, which other libraries may share: forcing a target here changes
// nothing for them.
//
// Include after hwy/foreach_target.h and hwy/highway.h.
#pragma once

#include <type_traits>

#include "base/cpu_features.h"
#include "headwise/dtype.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace headwise {

// Initialised before first use; changed by SetTarget.
hwy::ChosenTarget& ChosenTarget();

// What the chosen target multiplies bfloat16 with. Only what this build and this processor have.
BFloat16Unit ChosenUnit();

}  // namespace headwise

#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define HEADWISE_DISPATCH(function) HWY_STATIC_DISPATCH(function)
#else
#define HEADWISE_DISPATCH(function) (*HWY_DISPATCH_TABLE(function)[headwise::ChosenTarget().GetIndex()])
#endif

// In the namespace of each instruction set: functions that give its kOperation<T>, of type OperationKernel<T>.
#define HEADWISE_KERNELS(Operation)                                                        \
  const Operation##Kernel<Float16>* Operation##F16() { return &k##Operation<Float16>; }    \
  const Operation##Kernel<BFloat16>* Operation##BF16() { return &k##Operation<BFloat16>; } \
  const Operation##Kernel<float>* Operation##F32() { return &k##Operation<float>; }        \
  const Operation##Kernel<double>* Operation##F64() { return &k##Operation<double>; }

// Once, in namespace headwise: ChosenOperationKernel<T>(), that of the chosen instruction set.
#define HEADWISE_EXPORT_KERNELS(Operation)                  \
  HWY_EXPORT(Operation##F16);                               \
  HWY_EXPORT(Operation##BF16);                              \
  HWY_EXPORT(Operation##F32);                               \
  HWY_EXPORT(Operation##F64);                               \
  template <typename T>                                     \
  const Operation##Kernel<T>& Chosen##Operation##Kernel() { \
    if constexpr (std::is_same_v<T, Float16>) {             \
      return *HEADWISE_DISPATCH(Operation##F16)();          \
    } else if constexpr (std::is_same_v<T, BFloat16>) {     \
      return *HEADWISE_DISPATCH(Operation##BF16)();         \
    } else if constexpr (std::is_same_v<T, float>) {        \
      return *HEADWISE_DISPATCH(Operation##F32)();          \
    } else {                                                \
      return *HEADWISE_DISPATCH(Operation##F64)();          \
    }                                                       \
  }

// The same, and GetOperationKernel<T>() of the operation's header is that.
#define HEADWISE_GET_KERNELS(Operation)                                 \
  HEADWISE_EXPORT_KERNELS(Operation)                                    \
  template <typename T>                                                 \
  const Operation##Kernel<T>& Get##Operation##Kernel() {                \
    return Chosen##Operation##Kernel<T>();                              \
  }                                                                     \
  template const Operation##Kernel<Float16>& Get##Operation##Kernel();  \
  template const Operation##Kernel<BFloat16>& Get##Operation##Kernel(); \
  template const Operation##Kernel<float>& Get##Operation##Kernel();    \
  template const Operation##Kernel<double>& Get##Operation##Kernel();
