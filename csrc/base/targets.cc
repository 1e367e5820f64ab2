#include "base/targets.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/dispatch.h"
#include "headwise/runtime.h"

namespace headwise {
namespace {

struct Target {
  std::int64_t bit;  // Highway's
  std::string name;
  MatmulBackend backend = MatmulBackend::kFma;
};

// headwise's names of targets, best first within a processor family. Highway distinguishes more (AVX3_ZEN4,
// NEON_WITHOUT_AES, …); csrc/CMakeLists.txt builds one of each kind.
const Target kTargets[] = {
    {HWY_AVX3, "avx512_amx", MatmulBackend::kAmx},
    {HWY_AVX3, "avx512_bf16", MatmulBackend::kBf16Dot},
    {HWY_AVX3, "avx512"},
    {HWY_AVX2, "avx2"},
    {HWY_SSE4, "sse4"},
#ifdef HWY_SSE2
    {HWY_SSE2, "sse2"},
#endif
    {HWY_NEON, "neon"},
#ifdef HWY_NEON_WITHOUT_AES
    {HWY_NEON_WITHOUT_AES, "neon"},
#endif
    {HWY_EMU128, "scalar"},
    {HWY_SCALAR, "scalar"},
};

// Highway's targets that the processor and the operating system support.
std::int64_t Supported() {
  std::int64_t supported = hwy::SupportedTargets();
#if HWY_ARCH_X86 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
  // Highway 1.0.3 checks which registers the system saves, but mistakes "none of AVX" (noxsave) for all of them.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) supported &= ~(HWY_AVX2 | HWY_AVX3);
#endif
  return supported;
}

const std::vector<Target>& Available() {
  static const std::vector<Target> available = [] {
    // The baseline target needs only what the whole library is compiled for.
    const std::int64_t usable = (Supported() | HWY_STATIC_TARGET) & HWY_TARGETS;
    std::vector<Target> list;
    for (const Target& target : kTargets) {
      const bool listed =
          !list.empty() && list.back().name == target.name;  // several of Highway's targets share a name
      if ((usable & target.bit) && IsSupported(target.backend) && !listed) list.push_back(target);
    }
    return list;
  }();
  return available;
}

std::atomic<const Target*>& Chosen() {
  // The best one whose backend the system permits.
  static std::atomic<const Target*> chosen{&*std::find_if(
      Available().begin(), Available().end(), [](const Target& t) { return RequestPermission(t.backend); })};
  return chosen;
}

}  // namespace

hwy::ChosenTarget& ChosenTarget() {
  static hwy::ChosenTarget* const chosen = [] {
    static hwy::ChosenTarget target;
    target.Update(Chosen().load()->bit);
    return &target;
  }();
  return *chosen;
}

MatmulBackend ChosenMatmulBackend() { return Chosen().load(std::memory_order_relaxed)->backend; }

void EnsureTargetChosen() { ChosenTarget(); }

std::vector<std::string> ListTargets() {
  std::vector<std::string> names;
  for (const Target& target : Available()) names.push_back(target.name);
  return names;
}

std::string GetTarget() { return Chosen().load()->name; }

void SetTarget(const std::string& name) {
  std::string list;
  for (const Target& target : Available()) {
    if (target.name == name) {
      if (!RequestPermission(target.backend)) {
        throw std::invalid_argument("target: the system does not permit this process to use '" + name +
                                    "' (AMX tiles)");
      }
      ChosenTarget().Update(target.bit);
      Chosen().store(&target);
      return;
    }
    list += (list.empty() ? "" : ", ") + target.name;
  }
  throw std::invalid_argument("target: '" + name + "' is unknown or unsupported on this machine; available: " + list);
}

}  // namespace headwise
