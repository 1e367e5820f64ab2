#include "base/amx_permission.h"

#include "matmul/bf16_support.h"

#if HEADWISE_BF16_KERNELS && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headwise {

#if HEADWISE_BF16_KERNELS && defined(__linux__)
namespace {

constexpr unsigned kOsxsave = 1u << 27;                              // CPUID 1, ECX
constexpr unsigned kAmxBf16 = 1u << 22, kTile = 1u << 24;            // CPUID 7, EDX
constexpr unsigned kTileState = 3u << 17;                            // XCR0: tile configuration and tile data
constexpr unsigned long kTileData = 18;                              // number of the state component
constexpr long kGetSupported = 0x1021, kRequestPermission = 0x1023;  // ARCH_GET_XCOMP_SUPP, ARCH_REQ_XCOMP_PERM

}  // namespace

bool HasAmx() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kAmxBf16 | kTile)) != (kAmxBf16 | kTile)) return false;
  unsigned xcr0, upper;
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(upper) : "c"(0));
  if ((xcr0 & kTileState) != kTileState) return false;
  unsigned long supported = 0;
  return syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 && (supported >> kTileData & 1);
}

bool RequestAmxPermission() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }
#else
bool HasAmx() { return false; }
bool RequestAmxPermission() { return false; }
#endif

}  // namespace headwise
