// Shared by the fuzzers: reading bytes as sizes, choices and numbers, and running an operation on every target, on one
// thread and on several, against the reference.
//
// The bytes of an input determine shapes, strides and options; elements come from a table of normal numbers, with
// special values among them. After the last byte, zeros are read: any file is a valid input.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "headwise/runtime.h"
#include "tensor.h"
#include "testing/hooks.h"

namespace headwise::testing {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), end_(data + size) {}

  int Byte() { return data_ < end_ ? *data_++ : 0; }
  bool Bool() { return Byte() % 2 == 1; }
  // True with probability 1 / n; false after the last byte.
  bool OneIn(int n) { return Byte() % n == n - 1; }
  std::int64_t Integer(std::int64_t from, std::int64_t to) { return from + Wide() % (to - from + 1); }
  // In [0, small] or, with probability 1 / 16, in [0, large].
  std::int64_t Size(std::int64_t small, std::int64_t large) {
    const int byte = Byte();
    return byte < 240 ? byte % (small + 1) : Integer(0, large);
  }
  Guard Side() { return OneIn(3) ? Guard::kBefore : Guard::kAfter; }
  template <typename T, std::size_t kCount>
  T Pick(const T (&choices)[kCount]) {
    return choices[static_cast<std::size_t>(Byte()) % kCount];
  }

 private:
  std::int64_t Wide() { return Byte() + 256 * Byte(); }

  const std::uint8_t* data_;
  const std::uint8_t* const end_;
};

// Describes the input; called on failure.
inline std::function<std::string()>& Describe() {
  static std::function<std::string()> describe = [] { return std::string(); };
  return describe;
}

// Reports a failing input. libFuzzer writes it to a file, which replay.cc accepts.
[[noreturn]] inline void Fail(const std::string& message) {
  std::fprintf(stderr, "%s, on %s with %d threads%s\n%s\n", message.c_str(), GetTarget().c_str(), GetNumThreads(),
               Bf16ForAnyShape() ? ", bf16 for any shape" : "", Describe()().c_str());
  std::abort();
}

// Normal numbers with a prime period; drawing each of them would take most of the time.
inline double NormalNumber(std::size_t k) {
  static const std::vector<double> table = [] {
    Random random(1);
    std::normal_distribution<double> normal;
    std::vector<double> numbers(4093);
    for (double& number : numbers) number = normal(random);
    return numbers;
  }();
  return table[k % table.size()];
}

// Normal numbers of any magnitude, integers, or normal numbers with a few special values.
template <typename T, int kRank>
void Fill(const Tensor<T, kRank>& tensor, Bytes& bytes, bool may_be_odd = true) {
  const int kind = bytes.Byte() % 8;
  const auto first = static_cast<std::size_t>(bytes.Byte()) * 17;
  double factor = 1;
  if (kind == 6) factor = std::ldexp(1, static_cast<int>(bytes.Integer(0, 60)) - 30);
  if (kind == 7) factor = std::ldexp(1, static_cast<int>(bytes.Integer(0, 300)) - 160);
  tensor.ForEach([&, k = first](T& element) mutable {
    const double number = NormalNumber(k++);
    element = reference::Nearest<T>(kind == 4 ? std::round(number) : factor * number);
  });
  if (kind != 5 || tensor.Size() == 0 || !may_be_odd) return;
  const double special[] = {kNaN,
                            kInf,
                            -kInf,
                            0.0,
                            -0.0,
                            DenormMin<T>(),
                            7 * DenormMin<T>(),
                            -DenormMin<T>(),
                            MaxFinite<T>(),
                            -MaxFinite<T>(),
                            1e-30,
                            -1e-38,
                            -kNaN,
                            1e30,
                            1e4,
                            -1e4};
  for (int count = 1 + bytes.Byte() % 4; count > 0; --count) {
    std::int64_t place = bytes.Integer(0, tensor.Size() - 1);
    const T number = reference::Nearest<T>(bytes.Pick(special));
    tensor.ForEach([&](T& element) {
      if (place-- == 0) element = number;
    });
  }
}

// The largest finite number of the accumulator type of T.
template <typename T>
constexpr double kMaxFinite = static_cast<double>(std::numeric_limits<Accumulator<T>>::max());
template <typename T>
constexpr double kDenormMin = static_cast<double>(std::numeric_limits<Accumulator<T>>::denorm_min());

// Whether |got - expected| <= margin; infinity is accepted if the margin reaches beyond the largest number.
template <typename T>
bool IsClose(T got, double expected, double margin) {
  if (IsNear(got, expected, margin, 0)) return true;
  const double number = reference::ToDouble(got);
  if (!std::isfinite(expected) || std::isnan(number)) return false;
  return std::abs(expected) + margin >= MaxFinite<T>() && std::abs(number) >= MaxFinite<T>() - margin &&
         std::signbit(number) == std::signbit(expected);
}

// Margin of a sum of two products with rounded intermediates; NaN if they may overflow.
template <typename T>
double MarginOfSum(std::array<std::array<double, 2>, 2> products) {
  double finite = 0;
  for (const auto& [a, b] : products) {
    if (std::isfinite(a) && std::isfinite(b)) finite += std::abs(a * b);
  }
  return finite < kMaxFinite<T> ? 4 * kEpsilon<T> * finite + 4 * kDenormMin<T> : kNaN;
}

// Also checks that nothing was written between the rows. margin(i): allowed error of element i; NaN: not checked.
template <typename T, int kRank, typename Function>
void ExpectClose(const char* what, const Tensor<T, kRank>& tensor, const std::vector<double>& expected,
                 Function margin) {
  const std::vector<T> got = tensor.Values();
  if (!tensor.PaddingIntact()) Fail(std::string(what) + ": padding written");
  if (got.size() != expected.size()) Fail(std::string(what) + ": another size");
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double allowed = margin(i);
    if (std::isnan(allowed) || IsClose(got[i], expected[i], allowed)) continue;
    std::ostringstream text;
    text.precision(17);
    text << what << ", element " << i << " of " << got.size() << ": " << reference::ToDouble(got[i]) << ", expected "
         << expected[i] << " +- " << allowed;
    Fail(text.str());
  }
}

// Fills the output with NaN, so that unwritten elements are detected.
template <typename T, int kRank>
void Clear(const Tensor<T, kRank>& tensor) {
  tensor.ForEach([](T& element) { element = T{77}; });
}

using Bits = std::vector<std::uint8_t>;

// All NaNs are equal: the sign of a NaN sum depends on the order of operands, which the compiler chooses.
template <typename T, int kRank>
void Append(const Tensor<T, kRank>& tensor, Bits& bits) {
  std::vector<T> values = tensor.Values();
  for (T& value : values) {
    if (std::isnan(reference::ToDouble(value))) value = reference::Nearest<T>(kNaN);
  }
  const auto* const begin = reinterpret_cast<const std::uint8_t*>(values.data());
  bits.insert(bits.end(), begin, begin + values.size() * sizeof(T));
}

template <typename T, int kRank>
Bits BitsOf(const Tensor<T, kRank>& tensor) {
  Bits bits;
  Append(tensor, bits);
  return bits;
}

// On every target, on one thread: run() fills the tensors, compare() checks them. On one target (entering parallel
// regions is slow), several threads must give the same bits().
template <typename Run, typename Compare, typename GetBits>
void OnEveryTarget(Bytes& bytes, bool bf16_for_any_shape, const Run& run, const Compare& compare, const GetBits& bits) {
  static const std::vector<std::string> targets = ListTargets();
  const std::string& with_threads = targets[static_cast<std::size_t>(bytes.Byte()) % targets.size()];
  SetBf16ForAnyShape(bf16_for_any_shape);
  for (const std::string& target : targets) {
    SetTarget(target);
    SetNumThreads(1);
    SetThreadsForAnyWork(false);
    run();
    compare();
    if (target != with_threads) continue;
    const Bits expected = bits();
    SetNumThreads(3);
    SetThreadsForAnyWork(true);
    run();
    const Bits got = bits();
    const auto place = std::mismatch(expected.begin(), expected.end(), got.begin(), got.end()).first;
    if (place != expected.end()) {
      Fail("other bits than on one thread, byte " + std::to_string(place - expected.begin()) + " of " +
           std::to_string(expected.size()));
    }
  }
}

// Calls run(T{}) with an element type chosen by a byte.
template <typename Function>
void WithAnyType(Bytes& bytes, const Function& run) {
  switch (bytes.Byte() % 5) {
    case 1:
      return run(double{});
    case 2:
      return run(Float16{});
    case 3:
      return run(BFloat16{});
    default:
      return run(float{});
  }
}

// The entry point for libFuzzer and replay.cc: Check<T>(bytes) for a type chosen by the input.
#define HEADWISE_FUZZ(Check)                                                                                    \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {                           \
    headwise::testing::Bytes bytes(data, size);                                                                 \
    headwise::testing::WithAnyType(bytes, [&](auto type) { headwise::testing::Check<decltype(type)>(bytes); }); \
    return 0;                                                                                                   \
  }

// Reverses or broadcasts some axes other than the last; true if the view has changed.
template <typename T, int kRank>
bool Twist(View<T, kRank>& view, Bytes& bytes) {
  const int choice = bytes.Byte();
  if (choice % 4 != 3) return false;
  for (std::size_t axis = 0; axis + 1 < kRank; ++axis) {
    const int how = choice >> (2 + axis) & 3;
    if (how == 2) view.stride[axis] = 0;
    if (how != 3 || view.shape[axis] == 0) continue;
    view.data += (view.shape[axis] - 1) * view.stride[axis];
    view.stride[axis] = -view.stride[axis];
  }
  return true;
}

}  // namespace headwise::testing
