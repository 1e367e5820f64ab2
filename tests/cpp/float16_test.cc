// Compiled once per target, like the kernels: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "float16_test.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "base/dispatch.h"
#include "simd/float16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

void WidenFloat16(const Float16* from, std::int64_t n, float* to) { Widen(from, n, to); }
void WidenBFloat16(const BFloat16* from, std::int64_t n, float* to) { Widen(from, n, to); }
void NarrowFloat16(const float* from, std::int64_t n, Float16* to) { Narrow(from, n, to); }
void NarrowBFloat16(const float* from, std::int64_t n, BFloat16* to) { Narrow(from, n, to); }

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "support.h"
#include "testing/float16.h"

namespace headwise {

HWY_EXPORT(WidenFloat16);
HWY_EXPORT(WidenBFloat16);
HWY_EXPORT(NarrowFloat16);
HWY_EXPORT(NarrowBFloat16);

namespace testing {
namespace {

void Widened(const Float16* from, std::int64_t n, float* to) { HEADWISE_DISPATCH(WidenFloat16)(from, n, to); }
void Widened(const BFloat16* from, std::int64_t n, float* to) { HEADWISE_DISPATCH(WidenBFloat16)(from, n, to); }
void Narrowed(const float* from, std::int64_t n, Float16* to) { HEADWISE_DISPATCH(NarrowFloat16)(from, n, to); }
void Narrowed(const float* from, std::int64_t n, BFloat16* to) { HEADWISE_DISPATCH(NarrowBFloat16)(from, n, to); }

class Float16Test : public OnTarget {};

template <typename T>
std::vector<T> EveryNumber() {
  std::vector<T> all;
  for (int bits = 0; bits < 1 << 16; ++bits) all.push_back({static_cast<std::uint16_t>(bits)});
  return all;
}

template <typename T>
void CheckWiden() {
  const std::vector<T> all = EveryNumber<T>();
  std::vector<float> wide(all.size());
  Widened(all.data(), static_cast<std::int64_t>(all.size()), wide.data());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double expected = reference::ToDouble(all[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide[i])) << i;
    } else {
      ASSERT_EQ(wide[i], expected) << i;
      ASSERT_EQ(std::signbit(wide[i]), std::signbit(expected)) << i;
    }
  }
}
TEST_P(Float16Test, WidensEveryNumber) {
  CheckWiden<Float16>();
  CheckWiden<BFloat16>();
}

float FromBits(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof bits);
  return number;
}

template <typename T>
void CheckNarrow(const std::vector<float>& numbers) {
  std::vector<T> narrow(numbers.size());
  Narrowed(numbers.data(), static_cast<std::int64_t>(numbers.size()), narrow.data());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (std::isnan(numbers[i])) {
      ASSERT_TRUE(std::isnan(reference::ToDouble(narrow[i]))) << i;
    } else {
      ASSERT_EQ(narrow[i].bits, reference::Nearest<T>(static_cast<double>(numbers[i])).bits) << numbers[i];
    }
  }
}

// Every number, the midpoint between it and the next one (infinity counts as the next power of two), and the floats
// next to these.
template <typename T>
void CheckNarrowNearEveryNumber() {
  constexpr std::uint16_t kInfinity = 0x7FFF >> reference::Format16<T>::kMantissaBits
                                                    << reference::Format16<T>::kMantissaBits;
  const auto value = [](int bits) {
    const T previous{static_cast<std::uint16_t>(bits - 1)}, before{static_cast<std::uint16_t>(bits - 2)};
    if (bits < kInfinity) return reference::ToDouble(T{static_cast<std::uint16_t>(bits)});
    return 2 * reference::ToDouble(previous) - reference::ToDouble(before);
  };
  std::vector<float> numbers;
  for (int bits = 0; bits < kInfinity; ++bits) {
    for (const double place : {value(bits), (value(bits) + value(bits + 1)) / 2}) {
      const auto number = static_cast<float>(place);
      ASSERT_EQ(number, place);
      for (const float near : {number, std::nextafter(number, -1.F), std::nextafter(number, INFINITY)}) {
        numbers.push_back(near);
        numbers.push_back(-near);
      }
    }
  }
  CheckNarrow<T>(numbers);
}
TEST_P(Float16Test, NarrowsToTheNearestEven) {
  CheckNarrowNearEveryNumber<Float16>();
  CheckNarrowNearEveryNumber<BFloat16>();
}

template <typename T>
void CheckNarrowEverywhere() {
  std::vector<float> numbers;
  for (std::uint32_t bits = 0; bits < 0xFFFF0000u; bits += 10'007) numbers.push_back(FromBits(bits));
  // NaN of any sign and payload, including those whose upper 16 bits alone would be infinity.
  for (const std::uint32_t bits : {0x7F800000u, 0xFF800000u, 0x7F800001u, 0xFF800001u, 0x7F80FFFFu, 0x7FC00000u,
                                   0xFFC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FA12345u, 0x7F7FFFFFu, 0x00000001u}) {
    numbers.push_back(FromBits(bits));
  }
  CheckNarrow<T>(numbers);
}
TEST_P(Float16Test, NarrowsEveryFloat) {
  CheckNarrowEverywhere<Float16>();
  CheckNarrowEverywhere<BFloat16>();
}

template <typename T>
void CheckSizes() {
  const std::vector<T> all = EveryNumber<T>();
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (std::int64_t n = 0; n <= 70; ++n) {
      const auto size = static_cast<std::size_t>(n);
      const GuardedMemory narrow(size * sizeof(T), guard), wide(size * sizeof(float), guard);
      auto* const numbers = static_cast<T*>(narrow.data());
      auto* const floats = static_cast<float*>(wide.data());
      for (std::size_t i = 0; i < size; ++i) numbers[i] = all[1000 + 37 * i];
      Widened(numbers, n, floats);
      for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(floats[i], reference::ToDouble(all[1000 + 37 * i]));
      for (std::size_t i = 0; i < size; ++i) numbers[i] = {0};
      Narrowed(floats, n, numbers);
      for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(numbers[i].bits, 1000 + 37 * i);
    }
  }
}
TEST_P(Float16Test, EverySizeNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(Float16Test);

}  // namespace
}  // namespace testing
}  // namespace headwise
#endif
