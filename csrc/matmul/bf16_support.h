// HEADWISE_BF16_KERNELS: whether the bf16 kernels (BF16 dot and AMX) are compiled. Their instructions are inline
// assembly, so no compiler flag or target attribute is needed, only x86-64 and a GNU-style assembler.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HEADWISE_BF16_KERNELS 1
#else
#define HEADWISE_BF16_KERNELS 0
#endif
