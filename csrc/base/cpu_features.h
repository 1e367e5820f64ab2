// The matmul backends of this processor.
#pragma once

namespace headwise {

// The instructions that a matmul runs on. The choice is part of the target (base/targets.h); how many bf16 products
// replace one of float32 is decided in matmul/bf16_policy.h.
enum class MatmulBackend {
  kFma,      // fused multiply-adds of float32 and float64 vectors; every target
  kBf16Dot,  // AVX512_BF16: dot products of bf16 pairs in vector registers (matmul/bf16_dot-inl.h)
  kAmx,      // AMX-BF16: products of bf16 tiles (matmul/amx.h)
};

// Whether the processor has the instructions and the operating system saves their registers. For kBf16Dot the registers
// are those of AVX-512, which the target implies.
bool IsSupported(MatmulBackend backend);

// Asks the system for permission to use the backend; false if refused. Must precede the backend's first instruction in
// the process. Only AMX on Linux needs permission (Documentation/arch/x86/xstate.rst). Called when a target is selected
// and not earlier, because permission enlarges the signal frames of the whole process.
bool RequestPermission(MatmulBackend backend);

}  // namespace headwise
