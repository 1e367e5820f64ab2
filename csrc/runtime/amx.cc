#include "runtime/amx.h"

#include <atomic>

#include "kernels/amx.h"

#if HEADWISE_AMX && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace headwise {
namespace {

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

}  // namespace

bool AmxAvailable() {
  static const bool available = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kAmxBf16 | kTile)) != (kAmxBf16 | kTile)) return false;
    if ((Xcr0() & kTileState) != kTileState) return false;
    unsigned long supported = 0;
    return syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 && (supported >> kTileData & 1);
  }();
  return available;
}

bool RequestAmx() {
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

}  // namespace headwise
#else
namespace headwise {

bool AmxAvailable() { return false; }

bool RequestAmx() { return false; }

}  // namespace headwise
#endif

namespace headwise {
namespace {

std::atomic<bool> tiles_for_any_shape{false};

}  // namespace

bool TilesForAnyShape() { return tiles_for_any_shape.load(std::memory_order_relaxed); }
void SetTilesForAnyShape(bool on) { tiles_for_any_shape.store(on); }

}  // namespace headwise
