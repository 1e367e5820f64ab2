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
    for (const T* const scale : {static_cast<const T*>(nullptr), static_cast<const T*>(gamma.data())}) {
      RmsNorm(x.read(), scale, eps, out.view());
      EXPECT_TRUE(
          Near(out.Values(), reference::RmsNorm(x.read(), scale, eps), absolute + 20 * kEpsilon<T>, 8 * kEpsilon<T>))
          << "n " << x.view().shape[1];
      LayerNorm(x.read(), scale, static_cast<const T*>(nullptr), eps, out.view());
      EXPECT_TRUE(Near(out.Values(), reference::LayerNorm(x.read(), scale, static_cast<const T*>(nullptr), eps),
                       absolute + 20 * kEpsilon<T>, 8 * kEpsilon<T>));
      EXPECT_TRUE(out.PaddingIntact());
    }
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

template <typename T>
struct Gradients {
  using A = Accumulator<T>;
  Tensor<T, 2> d_x;
  Tensor<A, 1> d_gamma, d_beta;

  Gradients(bool centered, const Tensor<T, 2>& d_out, const Case<T>& test, const T* gamma, Guard guard,
            std::int64_t pad)
      : d_x(d_out.view().shape, guard, {0, 1}, pad),
        d_gamma({d_out.view().shape[1]}, guard),
        d_beta({d_out.view().shape[1]}, guard) {
    if (centered) {
      LayerNormBackward(d_out.read(), test.x.read(), gamma, 1e-5, d_x.view(), d_gamma.data(), d_beta.data());
    } else {
      RmsNormBackward(d_out.read(), test.x.read(), gamma, 1e-5, d_x.view(), d_gamma.data());
    }
  }
};

template <typename T>
void CheckBackward(std::int64_t rows, std::int64_t n, Guard guard = Guard::kAfter, std::int64_t pad = 0) {
  const Case<T> test(rows, n, guard, pad);
  const Tensor<T, 2> d_out({rows, n}, guard, {0, 1}, pad);
  Random random(7);
  FillNormal(d_out, random);
  const ReadOnly inputs(test.x, test.gamma, d_out);
  for (const bool centered : {false, true}) {
    for (const T* const gamma : {static_cast<const T*>(nullptr), static_cast<const T*>(test.gamma.data())}) {
      SetNumThreads(2);
      const Gradients<T> got(centered, d_out, test, gamma, guard, pad);
      const auto expected = reference::NormBackward(centered, d_out.read(), test.x.read(), gamma, 1e-5);
      // A row of one or two elements may have a small variance, so a large derivative that cancels.
      const double loose = n <= 2 ? 1e5 : 40 + static_cast<double>(n) / 10;
      const double sums = 20 * std::sqrt(static_cast<double>(rows));
      EXPECT_TRUE(Near(got.d_x.Values(), expected.x, loose * kEpsilon<T>, loose * kEpsilon<T>)) << rows << " " << n;
      EXPECT_TRUE(Near(got.d_gamma.Values(), expected.gamma, loose * sums * kEpsilon<T>, 8 * kEpsilon<T>));
      if (centered) {
        EXPECT_TRUE(Near(got.d_beta.Values(), expected.beta, sums * kEpsilon<T>, 8 * kEpsilon<T>));
      }
      EXPECT_TRUE(got.d_x.PaddingIntact());
      for (const int threads : {1, 4}) {
        SetNumThreads(threads);
        const Gradients<T> again(centered, d_out, test, gamma, guard, pad);
        EXPECT_TRUE(Identical(again.d_x.Values(), got.d_x.Values())) << threads;
        EXPECT_TRUE(Identical(again.d_gamma.Values(), got.d_gamma.Values())) << threads;
        if (centered) {
          EXPECT_TRUE(Identical(again.d_beta.Values(), got.d_beta.Values())) << threads;
        }
      }
    }
  }
}
template <typename T>
void CheckBackwardSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t n : Sizes()) CheckBackward<T>(3, n, guard, 3);
  }
  CheckBackward<T>(1000, 70);
  CheckBackward<T>(3, 5003);
  CheckBackward<T>(0, 5);
}
TEST_P(LayerNormTest, GradientsWithTheSameBitsForAnyThreadCount) {
  CheckBackwardSizes<Float16>();
  CheckBackwardSizes<BFloat16>();
  CheckBackwardSizes<float>();
  CheckBackwardSizes<double>();
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
