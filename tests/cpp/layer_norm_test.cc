#include "headwise/layer_norm.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class LayerNormTest : public OnTarget {};

template <typename T>
struct Case {
  Tensor<T, 2> x;
  Tensor<T, 1> gamma, beta;

  Case(std::int64_t rows, std::int64_t n, Guard guard = Guard::kAfter, std::int64_t pad = 0)
      : x({rows, n}, guard, {0, 1}, pad), gamma({n}, guard), beta({n}, guard) {
    Random random(static_cast<std::uint64_t>(rows * 1000 + n));
    FillNormal(x, random);
    FillNormal(gamma, random);
    FillNormal(beta, random);
  }

  void Check(double eps = 1e-5, Guard guard = Guard::kAfter, std::int64_t pad = 0, double absolute = 0) const {
    const Tensor<T, 2> out(x.view().shape, guard, {0, 1}, pad);
    const ReadOnly inputs(x, gamma, beta);
    LayerNorm(x.read(), gamma.data(), beta.data(), eps, out.view());
    const std::vector<double> expected = reference::LayerNorm(x.read(), gamma.data(), beta.data(), eps);
    EXPECT_TRUE(Near(out.Values(), expected, absolute + 20 * kEpsilon<T>, 8 * kEpsilon<T>))
        << "n " << x.view().shape[1];
    EXPECT_TRUE(out.PaddingIntact());
  }
};

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t n : Sizes()) {
      for (const std::int64_t pad : {0, 3}) Case<T>(3, n, guard, pad).Check(1e-5, guard, pad);
    }
  }
  Case<T>(2, 100'003).Check();
}
TEST_P(LayerNormTest, EverySizeNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// Rows far from zero: the expected values are computed from the rounded input.
template <typename T>
void CheckOffset() {
  Random random(1);
  for (const double offset : {1e3, kIs16Bit<T> ? -100 : -1e5, kIs16Bit<T> ? 10 : 0.05 / kEpsilon<T>}) {
    for (const std::int64_t n : {5, 64, 768}) {
      const Case<T> test(2, n);
      FillNormal(test.x, random, 1, offset);
      test.Check(0);
    }
  }
  for (const double value : {0.1, 12345.678, 1e30}) {
    const Case<T> test(1, 100);
    test.x.ForEach([&](T& element) { element = reference::Nearest<T>(value); });
    test.Check(1e-5);
  }
}
TEST_P(LayerNormTest, FarFromZero) {
  CheckOffset<Float16>();
  CheckOffset<BFloat16>();
  CheckOffset<float>();
  CheckOffset<double>();
}

template <typename T>
void CheckEps() {
  for (const double eps : {0.0, 1e-12, 1e-5, 10.0}) {
    const Case<T> test(4, 33);
    test.Check(eps);
    test.x.ForEach([](T& element) { element = reference::Nearest<T>(1e-6 * reference::ToDouble(element)); });
    test.Check(eps);
    test.x.ForEach([](T& element) { element = reference::Nearest<T>(1e18 * reference::ToDouble(element)); });
    test.Check(eps);
    test.x.ForEach([](T& element) { element = reference::Nearest<T>(1e24 * reference::ToDouble(element)); });
    test.Check(eps);  // squares overflow
  }
}
TEST_P(LayerNormTest, Epsilon) {
  CheckEps<Float16>();
  CheckEps<BFloat16>();
  CheckEps<float>();
  CheckEps<double>();
}

template <typename T>
void CheckNonFinite() {
  for (const std::int64_t n : {1, 7, 16, 70}) {
    for (const double odd : {kNaN, kInf, -kInf}) {
      for (std::int64_t where = 0; where < n; ++where) {
        const Case<T> test(3, n);
        *test.x.view().at(1, where) = reference::Nearest<T>(odd);
        test.Check();
      }
    }
  }
}
TEST_P(LayerNormTest, NaNAndInfinityStayInTheirRow) {
  CheckNonFinite<Float16>();
  CheckNonFinite<BFloat16>();
  CheckNonFinite<float>();
  CheckNonFinite<double>();
}

template <typename T>
void CheckInPlaceAndThreads() {
  const Case<T> test(500, 770);
  const Tensor<T, 2> out(test.x.view().shape);
  SetNumThreads(1);
  LayerNorm(test.x.read(), test.gamma.data(), test.beta.data(), 1e-5, out.view());
  const std::vector<T> expected = out.Values();
  for (const int threads : {2, 4}) {
    SetNumThreads(threads);
    LayerNorm(test.x.read(), test.gamma.data(), test.beta.data(), 1e-5, out.view());
    EXPECT_TRUE(Identical(out.Values(), expected)) << threads << " threads";
  }
  LayerNorm(test.x.read(), test.gamma.data(), test.beta.data(), 1e-5, test.x.view());
  EXPECT_TRUE(Identical(test.x.Values(), expected));
}
TEST_P(LayerNormTest, InPlaceAndSameBitsForAnyThreadCount) {
  CheckInPlaceAndThreads<Float16>();
  CheckInPlaceAndThreads<BFloat16>();
  CheckInPlaceAndThreads<float>();
  CheckInPlaceAndThreads<double>();
}

// Large results use non-temporal stores, except in place: the same bits for any alignment of the rows.
template <typename T>
void CheckNonTemporalStores() {
  const auto smaller = static_cast<std::int64_t>(sizeof(float) / sizeof(T));
  for (const auto& shape : {std::array<std::int64_t, 2>{9000 * smaller, 1001}, {1'500'000 * smaller, 6}}) {
    const Tensor<T, 2> x(shape, Guard::kAfter, {0, 1}, 3), out(shape, Guard::kAfter, {0, 1}, 3);
    const Tensor<T, 1> gamma({shape[1]});
    FillPeriodic(x);
    FillPeriodic(gamma);
    LayerNorm(x.read(), gamma.data(), gamma.data(), 1e-5, out.view());
    LayerNorm(x.read(), gamma.data(), gamma.data(), 1e-5, x.view());
    EXPECT_TRUE(Identical(out.Values(), x.Values()));
    EXPECT_TRUE(out.PaddingIntact());
  }
}
TEST_P(LayerNormTest, NonTemporalStores) {
  CheckNonTemporalStores<BFloat16>();
  CheckNonTemporalStores<float>();
}

TEST_P(LayerNormTest, Empty) {
  Case<float>(0, 5).Check();
  Case<double>(5, 0).Check();
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(LayerNormTest);

}  // namespace
}  // namespace headwise::testing
