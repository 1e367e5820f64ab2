// Shared by tests and fuzzers: memory with guard pages, random tensors, and comparison with the reference at the
// accuracy of the target.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "headwise/precision.h"
#include "headwise/runtime.h"
#include "headwise/tensor.h"
#include "testing/float16.h"

namespace headwise::testing {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Whether the target has bf16 products for T: AMX for all types but double, BF16 dot with one term for some.
template <typename T>
bool HasBf16Products(Precision precision) {
  const bool one_term = std::is_same_v<T, BFloat16> || (std::is_same_v<T, float> && precision == Precision::kMedium);
  return !std::is_same_v<T, double> && (GetTarget() == "avx512_amx" || (GetTarget() == "avx512_bf16" && one_term));
}

// The side of a tensor that is adjacent to a guard page. The guard page on the other side is less than a page away.
enum class Guard { kAfter, kBefore };

class GuardedMemory {
 public:
  GuardedMemory(std::size_t bytes, Guard guard) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page;
    size_ = inside + 2 * page;
    void* const base = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(base);
    page_ = page;
    SetWritable(true);
    data_ = base_ + page + (guard == Guard::kAfter ? inside - bytes : 0);
  }
  ~GuardedMemory() { munmap(base_, size_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void* data() const { return data_; }

  void SetWritable(bool writable) const {
    if (size_ == 2 * page_) return;
    const int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mprotect(base_ + page_, size_ - 2 * page_, access) != 0) throw std::bad_alloc();
  }

 private:
  std::byte* base_;
  std::byte* data_;
  std::size_t size_, page_;
};

// Owns its elements between guard pages. The axes lie in memory in the order given, outermost first; `pad` elements
// that must not be written separate the rows of the innermost one.
template <typename T, int kRank>
class Tensor {
 public:
  using Shape = std::array<std::int64_t, kRank>;

  explicit Tensor(Shape shape, Guard guard = Guard::kAfter, Shape order = InOrder(), std::int64_t pad = 0) {
    view_.shape = shape;
    std::int64_t count = 1;
    for (int k = kRank; k-- > 0;) {
      const auto axis = static_cast<std::size_t>(order[static_cast<std::size_t>(k)]);
      view_.stride[axis] = count;
      count = count * shape[axis] + (k == kRank - 1 ? pad : 0);
    }
    if (Size() == 0) count = 0;
    // The guard page, without padding, follows the last row.
    count_ = count > pad ? count - pad : 0;
    memory_ = std::make_shared<GuardedMemory>(static_cast<std::size_t>(count_) * sizeof(T), guard);
    view_.data = static_cast<T*>(memory_->data());
    std::fill_n(view_.data, count_, unwritten_);
  }

  static Shape InOrder() {
    Shape order{};
    for (int k = 0; k < kRank; ++k) order[static_cast<std::size_t>(k)] = k;
    return order;
  }

  View<T, kRank> view() const { return view_; }
  View<const T, kRank> read() const { return {view_.data, view_.shape, view_.stride}; }
  T* data() const { return view_.data; }
  const GuardedMemory& memory() const { return *memory_; }

  std::int64_t Size() const {
    std::int64_t size = 1;
    for (std::int64_t n : view_.shape) size *= n;
    return size;
  }

  // Visits the elements in the order of the axes, for any order in memory.
  template <typename Function>
  void ForEach(Function function) const {
    constexpr std::size_t kLast = kRank - 1;
    Shape index{};
    for (std::int64_t i = 0, size = Size(); i < size; i += view_.shape[kLast]) {
      std::int64_t offset = 0;
      for (std::size_t k = 0; k < kLast; ++k) offset += index[k] * view_.stride[k];
      for (std::int64_t j = 0; j < view_.shape[kLast]; ++j) function(view_.data[offset + j * view_.stride[kLast]]);
      for (std::size_t k = kLast; k-- > 0 && ++index[k] == view_.shape[k];) index[k] = 0;
    }
  }

  std::vector<T> Values() const {
    std::vector<T> values;
    values.reserve(static_cast<std::size_t>(Size()));
    ForEach([&](T& element) { values.push_back(element); });
    return values;
  }

  // True if nothing was written between the rows.
  bool PaddingIntact() const {
    if (count_ == Size()) return true;
    std::vector<bool> ours(static_cast<std::size_t>(count_));
    ForEach([&](T& element) { ours[static_cast<std::size_t>(&element - view_.data)] = true; });
    for (std::int64_t i = 0; i < count_; ++i) {
      if (ours[static_cast<std::size_t>(i)]) continue;
      if (std::memcmp(&view_.data[i], &unwritten_, sizeof(T)) != 0) return false;
    }
    return true;
  }

 private:
  // NaN, so that results computed from unwritten elements are detected. Each tensor has its own payload, so that
  // padding of an input copied to the padding of an output is detected as well.
  static T Unwritten() {
    if constexpr (std::is_integral_v<T>) {
      return T{77};
    } else {
      static std::atomic<unsigned> payload{0};
      T nan = reference::Nearest<T>(kNaN);
      std::uint8_t low;
      std::memcpy(&low, &nan, 1);
      low = static_cast<std::uint8_t>(low ^ (1 + payload++ % 63));
      std::memcpy(&nan, &low, 1);
      return nan;
    }
  }

  T unwritten_ = Unwritten();
  View<T, kRank> view_;
  std::int64_t count_;
  std::shared_ptr<GuardedMemory> memory_;
};

// Write-protects these tensors during its lifetime.
class ReadOnly {
 public:
  template <typename... Tensors>
  explicit ReadOnly(const Tensors&... tensors) {
    (Add(tensors), ...);
  }
  ~ReadOnly() {
    for (const GuardedMemory* memory : memory_) memory->SetWritable(true);
  }
  ReadOnly(const ReadOnly&) = delete;
  ReadOnly& operator=(const ReadOnly&) = delete;

  template <typename T, int kRank>
  void Add(const Tensor<T, kRank>& tensor) {
    memory_.push_back(&tensor.memory());
    memory_.back()->SetWritable(false);
  }

 private:
  std::vector<const GuardedMemory*> memory_;
};

using Random = std::mt19937_64;

inline std::int64_t Integer(Random& random, std::int64_t from, std::int64_t to) {
  return std::uniform_int_distribution<std::int64_t>(from, to)(random);
}
inline bool Chance(Random& random, double probability) { return std::bernoulli_distribution(probability)(random); }

template <typename T, int kRank>
const Tensor<T, kRank>& FillNormal(const Tensor<T, kRank>& tensor, Random& random, double deviation = 1,
                                   double mean = 0) {
  std::normal_distribution<double> normal(mean, deviation);
  tensor.ForEach([&](T& element) { element = reference::Nearest<T>(normal(random)); });
  return tensor;
}

// 0, 0.02, 0.04, ..., periodic: drawing or rounding each element of a large tensor would take seconds.
template <typename T, int kRank>
void FillPeriodic(const Tensor<T, kRank>& tensor) {
  std::vector<T> period;
  for (int i = 0; i < 1009; ++i) period.push_back(reference::Nearest<T>(0.02 * i));
  tensor.ForEach([&, i = std::size_t{0}](T& element) mutable { element = period[i++ % period.size()]; });
}

// Over the finite elements.
template <typename T, int kRank>
double MaxAbs(const Tensor<T, kRank>& tensor) {
  double max = 0;
  tensor.ForEach([&](T& element) {
    const double number = reference::ToDouble(element);
    if (std::isfinite(number)) max = std::max(max, std::abs(number));
  });
  return max;
}

// Of the accumulator type of T.
template <typename T>
constexpr double kEpsilon = static_cast<double>(std::numeric_limits<Accumulator<T>>::epsilon());

// The smallest positive and the largest number of T.
template <typename T>
double DenormMin() {
  if constexpr (kIs16Bit<T>) {
    return reference::ToDouble(T{1});
  } else {
    return static_cast<double>(std::numeric_limits<T>::denorm_min());
  }
}
template <typename T>
double MaxFinite() {
  if constexpr (kIs16Bit<T>) {
    constexpr int kMantissaBits = reference::Format16<T>::kMantissaBits;
    return reference::ToDouble(T{static_cast<std::uint16_t>((0x7FFF >> kMantissaBits << kMantissaBits) - 1)});
  } else {
    return static_cast<double>(std::numeric_limits<T>::max());
  }
}

// |got - expected| <= absolute + relative * |expected|; infinities, results that overflow to them, and NaN must be
// equal. A 16-bit result must be the rounding of a number within these bounds.
template <typename T>
bool IsNear(T got, double expected, double absolute, double relative) {
  if constexpr (kIs16Bit<T>) {
    const double number = reference::ToDouble(got), margin = absolute + relative * std::abs(expected);
    if (std::isnan(expected)) return std::isnan(number);
    if (std::isinf(expected)) return number == expected;
    return number >= reference::ToDouble(reference::Nearest<T>(expected - margin)) &&
           number <= reference::ToDouble(reference::Nearest<T>(expected + margin));
  } else {
    if (std::isnan(expected)) return std::isnan(got);
    if (std::abs(expected) > static_cast<double>(std::numeric_limits<T>::max())) {
      return std::isinf(got) && std::signbit(got) == std::signbit(expected);
    }
    return std::abs(static_cast<double>(got) - expected) <= absolute + relative * std::abs(expected);
  }
}

// Describes the first element that is out of bounds; empty if there is none.
template <typename T>
std::string Difference(const std::vector<T>& got, const std::vector<double>& expected, double absolute,
                       double relative = 0) {
  std::ostringstream text;
  if (got.size() != expected.size()) {
    text << got.size() << " elements, expected " << expected.size();
    return text.str();
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (IsNear(got[i], expected[i], absolute, relative)) continue;
    text << "element " << i << " of " << got.size() << ": " << reference::ToDouble(got[i]) << ", expected "
         << expected[i] << ", difference " << reference::ToDouble(got[i]) - expected[i];
    break;
  }
  return text.str();
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Sizes around the vectors of every target (1 to 16 lanes), their multiples, and blocks of 64 columns or rounds.
inline std::vector<std::int64_t> Sizes() {
  return {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 257};
}

}  // namespace headwise::testing
