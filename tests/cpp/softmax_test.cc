#include "headwise/softmax.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class SoftmaxTest : public OnTarget {};

enum class Operation { kSoftmax, kLogSoftmax, kLogSumExp };
constexpr Operation kOperations[] = {Operation::kSoftmax, Operation::kLogSoftmax, Operation::kLogSumExp};

// The axis is contiguous in memory if inner is 1.
std::array<std::int64_t, 3> Order(std::int64_t inner) {
  if (inner == 1) return {0, 2, 1};
  return {0, 1, 2};
}

template <typename T>
Tensor<T, 3> Run(Operation operation, const Tensor<T, 3>& x, Guard guard = Guard::kAfter, std::int64_t pad = 0) {
  const auto shape = x.view().shape;
  const std::array<std::int64_t, 3> order = Order(shape[2]);
  const ReadOnly input(x);
  if (operation == Operation::kLogSumExp) {
    Tensor<T, 3> out({shape[0], 1, shape[2]}, guard, order, pad);
    LogSumExp(x.read(), {out.data(), {shape[0], shape[2]}, {out.view().stride[0], 1}});
    return out;
  }
  Tensor<T, 3> out(shape, guard, order, pad);
  if (operation == Operation::kSoftmax) Softmax(x.read(), out.view());
  if (operation == Operation::kLogSoftmax) LogSoftmax(x.read(), out.view());
  return out;
}

template <typename T>
std::vector<double> Expected(Operation operation, const Tensor<T, 3>& x) {
  switch (operation) {
    case Operation::kSoftmax:
      return reference::Softmax(x.read());
    case Operation::kLogSoftmax:
      return reference::LogSoftmax(x.read());
    default:
      return reference::LogSumExp(x.read());
  }
}

// x - max is rounded by half a unit in the last place of the spread, which exp turns into a relative error of its
// result. Logarithms are rounded to units in the last place of the largest intermediate number.
template <typename T>
void Check(const Tensor<T, 3>& x, double spread, Guard guard = Guard::kAfter, std::int64_t pad = 0) {
  for (const Operation operation : kOperations) {
    const Tensor<T, 3> out = Run(operation, x, guard, pad);
    const double relative = (operation == Operation::kSoftmax ? 8 + spread : 4) * kEpsilon<T>;
    const double absolute =
        operation == Operation::kSoftmax ? 2 * DenormMin<Accumulator<T>>() : (4 + spread) * kEpsilon<T>;
    EXPECT_TRUE(Near(out.Values(), Expected(operation, x), absolute, relative))
        << "operation " << static_cast<int>(operation) << ", shape " << x.view().shape[0] << " " << x.view().shape[1]
        << " " << x.view().shape[2];
    EXPECT_TRUE(out.PaddingIntact());
  }
}

template <typename T>
void CheckSizes() {
  Random random(1);
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t pad : {0, 3}) {
      for (const std::int64_t size : Sizes()) {
        Check(FillNormal(Tensor<T, 3>({3, size, 1}, guard, Order(1), pad), random, 3), 24, guard, pad);
        for (const std::int64_t n : {1, 2, 5, 65}) {
          Check(FillNormal(Tensor<T, 3>({2, n, size}, guard, Order(size), pad), random, 3), 24, guard, pad);
        }
      }
    }
  }
}
TEST_P(SoftmaxTest, EverySizeBothLayoutsNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

template <typename T>
void CheckTransposed() {
  Random random(2);
  // The axis outermost in memory, and reversed columns.
  const Tensor<T, 3> x({3, 20, 40}, Guard::kAfter, {1, 0, 2});
  Check(FillNormal(x, random), 10);
  View<const T, 3> reversed = x.read();
  reversed.data = x.read().at(2, 19);
  reversed.stride[0] = -reversed.stride[0];
  reversed.stride[1] = -reversed.stride[1];
  const Tensor<T, 3> out({3, 20, 40});
  Softmax(reversed, out.view());
  EXPECT_TRUE(Near(out.Values(), reference::Softmax(reversed), 0, 20 * kEpsilon<T>));
}
TEST_P(SoftmaxTest, Strides) {
  CheckTransposed<Float16>();
  CheckTransposed<BFloat16>();
  CheckTransposed<float>();
  CheckTransposed<double>();
}

template <typename T>
void CheckInPlace() {
  Random random(3);
  for (const std::int64_t inner : {1, 7, 100}) {
    for (const Operation operation : {Operation::kSoftmax, Operation::kLogSoftmax}) {
      const Tensor<T, 3> x({4, 130, inner});
      FillNormal(x, random);
      const std::vector<T> expected = Run(operation, x).Values();
      if (operation == Operation::kSoftmax) Softmax(x.read(), x.view());
      if (operation == Operation::kLogSoftmax) LogSoftmax(x.read(), x.view());
      EXPECT_TRUE(Identical(x.Values(), expected));
    }
  }
}
TEST_P(SoftmaxTest, InPlace) {
  CheckInPlace<Float16>();
  CheckInPlace<BFloat16>();
  CheckInPlace<float>();
  CheckInPlace<double>();
}

// One NaN or infinity at any place affects its own lane only.
template <typename T>
void CheckNonFinite() {
  Random random(4);
  for (const std::int64_t inner : {1, 5, 70}) {
    for (const std::int64_t n : {1, 2, 17, 70}) {
      for (const double special : {kNaN, kInf, -kInf}) {
        for (std::int64_t where = 0; where < n; where += n / 20 + 1) {
          const Tensor<T, 3> x({2, n, inner});
          FillNormal(x, random);
          *x.view().at(1, where, inner / 2) = reference::Nearest<T>(special);
          Check(x, 10);
        }
      }
      const Tensor<T, 3> x({2, n, inner});
      const auto set = [&](double value) {
        FillNormal(x, random);
        for (std::int64_t i = 0; i < n; ++i) *x.view().at(1, i, inner / 2) = reference::Nearest<T>(value);
      };
      for (const double special : {kInf, -kInf}) {
        set(special);
        Check(x, 10);
        *x.view().at(1, n / 2, inner / 2) = reference::Nearest<T>(kNaN);
        Check(x, 10);
        *x.view().at(1, 0, inner / 2) = reference::Nearest<T>(-special);
        Check(x, 10);
      }
    }
  }
}
TEST_P(SoftmaxTest, NaNAndInfinity) {
  CheckNonFinite<Float16>();
  CheckNonFinite<BFloat16>();
  CheckNonFinite<float>();
  CheckNonFinite<double>();
}

// A NaN of any sign and payload.
TEST_P(SoftmaxTest, EveryNaN) {
  for (const std::uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFFFFFFFFu, 0x7FA12345u, 0xFF812345u}) {
    for (const std::int64_t inner : {1, 20}) {
      const Tensor<float, 3> x({1, 20, inner});
      x.ForEach([](float& element) { element = 1; });
      std::memcpy(x.view().at(0, 11, 0), &bits, sizeof bits);
      Check(x, 10);
    }
  }
}

// Arguments from 0 to beyond the range of exp, including subnormal results.
template <typename T>
void CheckRange() {
  const double lowest = std::log(DenormMin<T>()) - 20;
  for (const std::int64_t inner : {1, 21}) {
    const Tensor<T, 3> x({1, 1000, inner});
    for (const double offset : {0.0, 1e4, -1e4}) {
      std::int64_t i = 0;
      x.ForEach([&](T& element) {
        element = reference::Nearest<T>(offset + lowest * static_cast<double>(i++) / (1000.0 * inner));
      });
      Check(x, offset == 0 ? -lowest : 1e4 - lowest);
    }
    // The largest numbers: their difference overflows.
    std::int64_t i = 0;
    x.ForEach([&](T& element) { element = reference::Nearest<T>((i++ % 2 ? 1 : -1) * MaxFinite<T>()); });
    Check(x, 10);
    x.ForEach([&](T& element) { element = reference::Nearest<T>(DenormMin<T>() * static_cast<double>(i++ % 5)); });
    Check(x, 10);
  }
}
TEST_P(SoftmaxTest, RangeOfExp) {
  CheckRange<Float16>();
  CheckRange<BFloat16>();
  CheckRange<float>();
  CheckRange<double>();
}

template <typename T>
void CheckLong() {
  Random random(5);
  for (const std::int64_t inner : {1, 3}) {
    const Tensor<T, 3> x({1, 1'000'000 / inner, inner});
    Check(FillNormal(x, random), 8);
    x.ForEach([](T& element) { element = reference::Nearest<T>(0.1); });
    Check(x, 1);
  }
}
TEST_P(SoftmaxTest, LongLanesStayAccurate) {
  CheckLong<BFloat16>();
  CheckLong<float>();
  CheckLong<double>();
}

// Long rows, which are split into parts: NaN or infinity in one part, parts of one infinity only, the maximum in any
// part.
template <typename T>
void CheckParts() {
  Random random(7);
  for (const std::int64_t n : {4097, 12'300, 65'537}) {
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      Check(FillNormal(Tensor<T, 3>({2, n, 1}, guard, Order(1), 3), random, 3), 30, guard);
    }
    const Tensor<T, 3> x({2, n, 1}, Guard::kAfter, Order(1), 3);
    const auto fill = [&](std::int64_t begin, std::int64_t end, double value) {
      for (std::int64_t i = begin; i < std::min(n, end); ++i) *x.view().at(1, i, 0) = reference::Nearest<T>(value);
    };
    for (const std::int64_t where : {std::int64_t{4095}, n - 1}) {
      for (const double special : {kNaN, kInf, 50.0, MaxFinite<T>()}) {
        FillNormal(x, random);
        fill(where, where + 1, special);
        Check(x, 60);
      }
    }
    for (const double special : {-kInf, kInf, -MaxFinite<T>()}) {
      FillNormal(x, random);
      fill(0, 4096, special);
      Check(x, 10);
      fill(0, n, special);
      Check(x, 10);
    }
    FillNormal(x, random);
    fill(0, 4096, -kInf);
    fill(n - 1, n, kNaN);
    Check(x, 10);
  }
}
TEST_P(SoftmaxTest, RowsInParts) {
  CheckParts<Float16>();
  CheckParts<BFloat16>();
  CheckParts<float>();
  CheckParts<double>();
}

// Large results use non-temporal stores, except in place: the same bits for any alignment of the rows.
template <typename T>
void CheckNonTemporalStores() {
  const auto smaller = static_cast<std::int64_t>(sizeof(float) / sizeof(T));
  for (const auto& shape : {std::array<std::int64_t, 3>{4300 * smaller, 2001, 1}, {2 * smaller, 4'500'001, 1}}) {
    for (const Operation operation : {Operation::kSoftmax, Operation::kLogSoftmax}) {
      const Tensor<T, 3> x(shape, Guard::kAfter, Order(1), 3);
      FillPeriodic(x);
      const Tensor<T, 3> out = Run(operation, x, Guard::kAfter, 3);
      EXPECT_TRUE(out.PaddingIntact());
      if (operation == Operation::kSoftmax) Softmax(x.read(), x.view());
      if (operation == Operation::kLogSoftmax) LogSoftmax(x.read(), x.view());
      EXPECT_TRUE(Identical(x.Values(), out.Values()));
    }
  }
}

TEST_P(SoftmaxTest, NonTemporalStores) {
  CheckNonTemporalStores<BFloat16>();
  CheckNonTemporalStores<float>();
}

template <typename T>
void CheckEmpty() {
  for (const auto shape : {std::array<std::int64_t, 3>{0, 5, 1}, {4, 0, 1}, {0, 5, 7}, {4, 0, 7}, {4, 5, 0}})
    Check(Tensor<T, 3>(shape), 1);
}
TEST_P(SoftmaxTest, Empty) {
  CheckEmpty<Float16>();
  CheckEmpty<BFloat16>();
  CheckEmpty<float>();
  CheckEmpty<double>();
}

template <typename T>
void CheckThreads() {
  Random random(6);
  for (const std::array<std::int64_t, 3> shape : {std::array<std::int64_t, 3>{301, 400, 1},
                                                  {3, 200, 333},
                                                  {1, 50, 4001},
                                                  {1, 300'001, 1},
                                                  {3, 70'000, 1},
                                                  {40, 70'001, 1},
                                                  {5, 9'001, 1}}) {
    const Tensor<T, 3> x(shape);
    FillNormal(x, random);
    for (const Operation operation : kOperations) {
      SetNumThreads(1);
      const std::vector<T> expected = Run(operation, x).Values();
      for (const int threads : {2, 4}) {
        SetNumThreads(threads);
        EXPECT_TRUE(Identical(Run(operation, x).Values(), expected)) << threads << " threads";
      }
    }
  }
}
TEST_P(SoftmaxTest, SameBitsForAnyThreadCount) {
  CheckThreads<Float16>();
  CheckThreads<BFloat16>();
  CheckThreads<float>();
  CheckThreads<double>();
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(SoftmaxTest);

}  // namespace
}  // namespace headwise::testing
