// Whether products of bfloat16 in tiles are compiled: their instructions are written as assembly, so that neither a
// compiler flag nor a compiler's own attribute for them is needed.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HEADWISE_BF16_KERNELS 1
#else
#define HEADWISE_BF16_KERNELS 0
#endif
