// Shared by the benchmarks of every operation: tensors, comparison with the reference, and the registration of
// problems, which are checked before they are timed.
//
// A problem is a class constructed from one line of a table of cases, with
//
//   void Run()                the timed call
//   double Error()            error of its output relative to the largest entry, on a sample
//   double flops, bytes       of one run: operations of the matrix products, and bytes that must be read and written
//   using Type                element type of its arrays: float, double, Float16 or BFloat16
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "headwise/dtype.h"
#include "headwise/runtime.h"
#include "headwise/tensor.h"
#include "memory.h"
#include "roofline.h"
#include "testing/float16.h"

namespace headwise::bench {

using std::int64_t;

template <typename T>
constexpr const char* kTypeName = sizeof(T) == 4 ? "float32" : "float64";
template <>
inline constexpr const char* kTypeName<Float16> = "float16";
template <>
inline constexpr const char* kTypeName<BFloat16> = "bfloat16";

// Bound of Error; for 16-bit types half a unit in the last place.
template <typename T>
constexpr double kMaxError = sizeof(T) == 4 ? 1e-5 : 1e-13;
template <>
inline constexpr double kMaxError<Float16> = 0x1.01p-11;
template <>
inline constexpr double kMaxError<BFloat16> = 0x1.01p-8;

// Dense, with the last axis contiguous; normally distributed, or 0.
template <typename T, int kRank>
class Tensor {
 public:
  using Shape = std::array<int64_t, kRank>;

  explicit Tensor(Shape shape) : size_(Product(shape)), memory_(size_ * sizeof(T)) {
    view_.data = reinterpret_cast<T*>(memory_.data());
    view_.shape = shape;
    for (int64_t axis = kRank, stride = 1; axis-- > 0; stride *= shape[axis]) view_.stride[axis] = stride;
    std::fill_n(data(), size_, T{0});
  }

  // Random numbers with a prime period: drawing each element would take longer than the benchmark.
  Tensor& FillNormal(std::uint64_t seed) {
    constexpr std::size_t kPeriod = 65537;
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    std::vector<T> drawn(std::min<std::size_t>(kPeriod, size_));
    for (T& element : drawn) element = reference::Nearest<T>(normal(random));
    for (std::size_t i = 0; i < size_; i += drawn.size())
      std::copy_n(drawn.begin(), std::min(drawn.size(), size_ - i), data() + i);
    return *this;
  }

  T* data() const { return view_.data; }
  View<T, kRank> view() const { return view_; }
  View<const T, kRank> read() const { return {view_.data, view_.shape, view_.stride}; }
  double bytes() const { return static_cast<double>(size_ * sizeof(T)); }

 private:
  static std::size_t Product(const Shape& shape) {
    std::size_t product = 1;
    for (const int64_t n : shape) product *= static_cast<std::size_t>(n);
    return product;
  }

  std::size_t size_;
  Memory memory_;
  View<T, kRank> view_;
};

// Entries [begin, begin + size) of an axis.
template <typename T, int kRank>
View<T, kRank> Slice(View<T, kRank> view, int axis, int64_t begin, int64_t size) {
  view.data += begin * view.stride[axis];
  view.shape[axis] = size;
  return view;
}

// Maximum difference between a view's elements, in the order of its axes, and the expected numbers, relative to the
// largest of these. Infinite if either is not finite.
template <typename T, int kRank>
double RelativeError(View<T, kRank> got, const std::vector<double>& expected) {
  double difference = 0, largest = 0;
  std::array<int64_t, kRank> index{};
  for (const double e : expected) {
    int64_t offset = 0;
    for (int k = 0; k < kRank; ++k) offset += index[k] * got.stride[k];
    const double g = reference::ToDouble(got.data[offset]);
    if (!std::isfinite(e) || !std::isfinite(g)) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::abs(g - e));
    largest = std::max(largest, std::abs(e));
    for (int k = kRank; k-- > 0 && ++index[k] == got.shape[k];) index[k] = 0;
  }
  return largest > 0 ? difference / largest : difference;
}

// Maximum of error(begin, size) over a few entries at the start, middle and end of an axis: the naive reference would
// take minutes for all entries.
template <typename Function>
double LargestOnSample(int64_t axis_size, const Function& error) {
  const int64_t size = std::min<int64_t>(axis_size, 4);
  double largest = 0;
  for (const int64_t begin : std::set<int64_t>{0, (axis_size - size) / 2, axis_size - size})
    largest = std::max(largest, error(begin, size));
  return largest;
}

struct Setting {
  std::string target;
  int threads;
};

// Adds the benchmark `name`/<type>/<target>/threads:<threads>.
template <class Problem, class Case>
void Register(const std::string& name, const Case& problem_case, const Setting& setting) {
  using T = typename Problem::Type;
  const auto time = [=](benchmark::State& state) {
    SetTarget(setting.target);
    SetNumThreads(setting.threads);
    Problem problem(problem_case);
    problem.Run();
    if (!(problem.Error() < kMaxError<T>)) {
      state.SkipWithError("the result is not that of the reference");
      return;
    }
    // Called before the timer starts, because the first call measures.
    const double peak = PeakGflops<Accumulator<T>>(setting.threads), copy = CopyGigabytes(setting.threads);
    problem.Run();

    const auto start = std::chrono::steady_clock::now();
    for (auto _ : state) problem.Run();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const double per_nanosecond = static_cast<double>(state.iterations()) / elapsed.count() / 1e9;
    if (problem.flops > 0) {
      state.counters["GFLOP/s"] = problem.flops * per_nanosecond;
      state.counters["peak%"] = 100 * problem.flops * per_nanosecond / peak;
    }
    state.counters["GB/s"] = problem.bytes * per_nanosecond;
    state.counters["copy%"] = 100 * problem.bytes * per_nanosecond / copy;
  };
  const std::string full =
      name + "/" + kTypeName<T> + "/" + setting.target + "/threads:" + std::to_string(setting.threads);
  benchmark::RegisterBenchmark(full.c_str(), time)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

inline std::string Join(std::initializer_list<int64_t> shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : "x") + std::to_string(n);
  return text;
}

// Defined once per file.
void RegisterActivation(const Setting& setting);
void RegisterAlibi(const Setting& setting);
void RegisterAttention(const Setting& setting);
void RegisterAttentionBackward(const Setting& setting);
void RegisterAttentionVarlen(const Setting& setting);
void RegisterLayerNorm(const Setting& setting);
void RegisterLinear(const Setting& setting);
void RegisterRope(const Setting& setting);
void RegisterSoftmax(const Setting& setting);

}  // namespace headwise::bench
