#include "base/cpu_features.h"

#include "base/amx_permission.h"
#include "matmul/bf16_support.h"

#if HEADWISE_BF16_KERNELS
#include <cpuid.h>
#endif

namespace headwise {
namespace {

#if HEADWISE_BF16_KERNELS
constexpr unsigned kAvx512Bf16 = 1u << 5;  // CPUID 7, subleaf 1, EAX

bool HasBf16Dot() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
}
#else
bool HasBf16Dot() { return false; }
#endif

}  // namespace

bool IsSupported(MatmulBackend backend) {
  static const bool dot = HasBf16Dot(), amx = HasAmx();
  switch (backend) {
    case MatmulBackend::kFma:
      return true;
    case MatmulBackend::kBf16Dot:
      return dot;
    case MatmulBackend::kAmx:
      return amx;
  }
  return false;
}

bool RequestPermission(MatmulBackend backend) {
  if (backend != MatmulBackend::kAmx) return true;
  static const bool granted = RequestAmxPermission();
  return granted;
}

}  // namespace headwise
