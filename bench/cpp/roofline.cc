// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "roofline.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include <cstdint>

#include "base/dispatch.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace headwise::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Independent chains. Two units with a latency of 4 or 5 cycles need 10; with the two factors, 12 fit 16 registers.
constexpr int kChains = 12;

// Operations executed in `steps` steps. `seed` and `sink` keep the compiler from optimising the loop away.
template <typename T>
double MultiplyAdds(std::int64_t steps, double seed, double* sink) {
  const hn::ScalableTag<T> d;
  // x = a x + b tends to 1. Each product depends on the last sum, so none can be taken out of the loop.
  const auto a = hn::Set(d, static_cast<T>(1 - seed));
  const auto b = hn::Set(d, static_cast<T>(seed));
  hn::Vec<decltype(d)> x[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) x[i] = hn::Set(d, static_cast<T>(i));
  for (std::int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) x[i] = hn::MulAdd(x[i], a, b);
  }
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) x[0] = hn::Add(x[0], x[i]);
  *sink = static_cast<double>(hn::GetLane(x[0]));
  return 2.0 * static_cast<double>(steps) * kChains * static_cast<double>(hn::Lanes(d));
}

double MultiplyAddsF32(std::int64_t steps, double seed, double* sink) { return MultiplyAdds<float>(steps, seed, sink); }
double MultiplyAddsF64(std::int64_t steps, double seed, double* sink) {
  return MultiplyAdds<double>(steps, seed, sink);
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "headwise/runtime.h"
#include "memory.h"
#include "roofline.h"

namespace headwise::bench {

HWY_EXPORT(MultiplyAddsF32);
HWY_EXPORT(MultiplyAddsF64);

namespace {

constexpr int kAttempts = 10;              // other programs disturb some of them
constexpr double kLongEnough = 0.02;       // seconds
constexpr std::size_t kBytes = 256 << 20;  // per array: larger than the caches

template <typename Function>
double Seconds(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <typename T>
double MeasurePeak(int threads) {
  const auto run = std::is_same_v<T, float> ? HEADWISE_DISPATCH(MultiplyAddsF32) : HEADWISE_DISPATCH(MultiplyAddsF64);
  const volatile double seed = 1e-3;
  // A cache line apart.
  std::vector<double> operations(8 * threads), sinks(8 * threads);
  double peak = 0;
  std::int64_t steps = 1 << 16;
  for (int attempt = 0; attempt < kAttempts;) {
    const double seconds = Seconds([&] {
      ParallelFor(threads, threads, [&](std::int64_t i, int) { operations[8 * i] = run(steps, seed, &sinks[8 * i]); });
    });
    if (seconds < kLongEnough) {
      steps *= 2;
      continue;
    }
    double total = 0;
    for (const double part : operations) total += part;
    peak = std::max(peak, total / seconds / 1e9);
    ++attempt;
  }
  return peak;
}

double MeasureCopy(int threads) {
  const Memory from(kBytes), to(kBytes);
  std::memset(from.data(), 1, kBytes);
  double best = 0;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const double seconds = Seconds([&] {
      ParallelFor(threads, threads, [&](std::int64_t i, int) {
        const std::size_t begin = kBytes / threads * i, end = i + 1 == threads ? kBytes : begin + kBytes / threads;
        std::memcpy(to.data() + begin, from.data() + begin, end - begin);
      });
    });
    best = std::max(best, 2.0 * kBytes / seconds / 1e9);
  }
  return best;
}

}  // namespace

template <typename T>
double PeakGflops(int threads) {
  static std::map<std::pair<std::string, int>, double> known;
  const auto [entry, is_new] = known.try_emplace({GetTarget(), threads});
  if (is_new) entry->second = MeasurePeak<T>(threads);
  return entry->second;
}
template double PeakGflops<float>(int threads);
template double PeakGflops<double>(int threads);

double CopyGigabytes(int threads) {
  static std::map<int, double> known;
  const auto [entry, is_new] = known.try_emplace(threads);
  if (is_new) entry->second = MeasureCopy(threads);
  return entry->second;
}

}  // namespace headwise::bench
#endif
