#include "base/cpu_features.h"

#include <atomic>

#include "matmul/bf16_support.h"
#ifdef HEADWISE_EMULATE_AMX
#include "testing/emulated_amx.h"
#endif

#if HEADWISE_BF16_KERNELS
#include <cpuid.h>
#endif
#if HEADWISE_BF16_KERNELS && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headwise {
namespace {

#if HEADWISE_BF16_KERNELS
constexpr unsigned kAvx512Bf16 = 1u << 5;  // CPUID 7, second leaf, EAX

bool HasDot() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
}
#else
bool HasDot() { return false; }
#endif

#ifdef HEADWISE_EMULATE_AMX
bool HasAmx() { return true; }
bool RequestAmx() { return EmulateTiles(); }
#elif HEADWISE_BF16_KERNELS && defined(__linux__)
constexpr unsigned kOsxsave = 1u << 27;                    // CPUID 1, ECX
constexpr unsigned kAmxBf16 = 1u << 22, kTile = 1u << 24;  // CPUID 7, EDX
constexpr unsigned kTileState = 3u << 17;                  // XCR0: configuration and data
constexpr unsigned long kTileData = 18;
constexpr long kGetSupported = 0x1021, kRequestPermission = 0x1023;  // of arch_prctl

unsigned Xcr0() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool HasAmx() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kAmxBf16 | kTile)) != (kAmxBf16 | kTile)) return false;
  if ((Xcr0() & kTileState) != kTileState) return false;
  unsigned long supported = 0;
  return syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 && (supported >> kTileData & 1);
}

bool RequestAmx() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }
#else
bool HasAmx() { return false; }
bool RequestAmx() { return false; }
#endif

std::atomic<bool> bf16_for_any_shape{false};

}  // namespace

bool IsSupported(MatmulBackend backend) {
  static const bool dot = HasDot(), amx = HasAmx();
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
  static const bool granted = RequestAmx();
  return granted;
}

bool Bf16ForAnyShape() { return bf16_for_any_shape.load(std::memory_order_relaxed); }
void SetBf16ForAnyShape(bool on) { bf16_for_any_shape.store(on); }

}  // namespace headwise
