#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "headwise/runtime.h"
#include "runtime/dispatch.h"

namespace headwise {
namespace {

// Our names, best first within a processor family. Highway splits some sets further (AVX3_ZEN4, NEON_WITHOUT_AES, …);
// csrc/CMakeLists.txt builds one of each.
const std::pair<std::int64_t, const char*> kNames[] = {
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

using Target = std::pair<std::int64_t, std::string>;

const std::vector<Target>& Available() {
  static const std::vector<Target> available = [] {
    // The baseline needs no support beyond what the whole library was compiled for.
    const std::int64_t usable = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS;
    std::vector<Target> list;
    for (const auto& [bit, name] : kNames) {
      if (usable & bit) list.emplace_back(bit, name);
    }
    return list;
  }();
  return available;
}

std::atomic<const Target*>& Chosen() {
  static std::atomic<const Target*> chosen{&Available().front()};
  return chosen;
}

}  // namespace

hwy::ChosenTarget& ChosenTarget() {
  static hwy::ChosenTarget* const chosen = [] {
    static hwy::ChosenTarget target;
    target.Update(Chosen().load()->first);
    return &target;
  }();
  return *chosen;
}

std::vector<std::string> ListTargets() {
  std::vector<std::string> names;
  for (const auto& [bit, name] : Available()) names.push_back(name);
  return names;
}

std::string GetTarget() { return Chosen().load()->second; }

void SetTarget(const std::string& name) {
  std::string list;
  for (const Target& target : Available()) {
    if (target.second == name) {
      ChosenTarget().Update(target.first);
      Chosen().store(&target);
      return;
    }
    list += (list.empty() ? "" : ", ") + target.second;
  }
  throw std::invalid_argument("target: '" + name + "' is unknown or unsupported on this machine; available: " + list);
}

}  // namespace headwise
