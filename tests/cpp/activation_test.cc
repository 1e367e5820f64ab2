#include "headwise/activation.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class ActivationTest : public OnTarget {};

constexpr Activation kFunctions[] = {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu};

// gelu_tanh multiplies rounding errors by the argument of its exponential, up to 90 in float32 and 750 in float64.
template <typename T>
double Bound(Activation f) {
  return kEpsilon<T> * (f != Activation::kGeluTanh ? 10 : std::is_same_v<T, double> ? 1000 : 120);
}

template <typename T>
struct Case {
  Guard guard;
  std::int64_t pad;
  Tensor<T, 2> d_out, x, up;

  Case(std::int64_t rows, std::int64_t n, Guard guard = Guard::kAfter, std::int64_t pad = 0)
      : guard(guard), pad(pad), d_out(Empty(rows, n)), x(Empty(rows, n)), up(Empty(rows, n)) {
    Random random(static_cast<std::uint64_t>(rows * 1000 + n));
    for (const auto* tensor : {&d_out, &x, &up}) FillNormal(*tensor, random, tensor == &x ? 3 : 1);
  }

  Tensor<T, 2> Empty(std::int64_t rows, std::int64_t n) const { return Tensor<T, 2>({rows, n}, guard, {0, 1}, pad); }

  void Check() const {
    const auto [rows, n] = x.view().shape;
    const ReadOnly inputs(d_out, x, up);
    for (const Activation f : kFunctions) {
      for (const View<const T, 2> factor : {View<const T, 2>(), up.read()}) {
        const Tensor<T, 2> out = Empty(rows, n), d_x = Empty(rows, n), d_up = Empty(rows, n);
        Activate(f, x.read(), factor, out.view());
        EXPECT_TRUE(Near(out.Values(), reference::Activate(f, x.read(), factor), 2 * DenormMin<T>(), Bound<T>(f)))
            << "function " << static_cast<int>(f) << " n " << n;
        ActivateBackward(f, d_out.read(), x.read(), factor, d_x.view(), factor ? d_up.view() : View<T, 2>());
        const auto expected = reference::ActivateBackward(f, d_out.read(), x.read(), factor);
        EXPECT_TRUE(Near(d_x.Values(), expected.x, 40 * kEpsilon<T>, 40 * kEpsilon<T>)) << static_cast<int>(f);
        if (factor) {
          EXPECT_TRUE(Near(d_up.Values(), expected.up, 2 * DenormMin<T>(), Bound<T>(f))) << static_cast<int>(f);
        }
        EXPECT_TRUE(out.PaddingIntact() && d_x.PaddingIntact() && d_up.PaddingIntact());
      }
    }
  }
};

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t n : Sizes()) {
      for (const std::int64_t pad : {0, 3}) Case<T>(3, n, guard, pad).Check();
    }
  }
  Case<T>(2, 5003).Check();
  Case<T>(0, 5).Check();
  Case<T>(5, 0).Check();
}
TEST_P(ActivationTest, EverySizeNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// Numbers of every size and the special ones. A relative bound holds down to the subnormal numbers.
template <typename T>
void CheckRange() {
  const Case<T> test(1, 4000);
  test.x.ForEach([i = 0](T& element) mutable {
    const double place = -2000.0 + i++;
    element = reference::Nearest<T>(std::copysign(std::exp(std::abs(place) / 250 - 3), place));
  });
  const double special[] = {kInf, -kInf, kNaN, 0.0, -0.0, 1e300, -1e300, -38.5, -13.25, -104.5, -745.0};
  for (std::size_t i = 0; i < std::size(special); ++i) test.x.data()[97 * i] = reference::Nearest<T>(special[i]);
  const Tensor<T, 2> out({1, 4000});
  for (const Activation f : kFunctions) {
    Activate(f, test.x.read(), {}, out.view());
    EXPECT_TRUE(
        Near(out.Values(), reference::Activate(f, test.x.read(), View<const T, 2>()), 2 * DenormMin<T>(), Bound<T>(f)))
        << static_cast<int>(f);
  }
  test.Check();
}
TEST_P(ActivationTest, WholeRange) {
  CheckRange<Float16>();
  CheckRange<BFloat16>();
  CheckRange<float>();
  CheckRange<double>();
}

// The bits depend neither on the number of threads nor on the place of an element in its row.
template <typename T>
void CheckBits() {
  const Case<T> test(70, 3001), joined(1, 70 * 3001);
  joined.x.ForEach([values = test.x.Values(), i = std::size_t{0}](T& element) mutable { element = values[i++]; });
  for (const Activation f : kFunctions) {
    SetNumThreads(1);
    const Tensor<T, 2> out({70, 3001}), d_x({70, 3001}), d_up({70, 3001}), row({1, 70 * 3001});
    const auto run = [&] {
      Activate(f, test.x.read(), test.up.read(), out.view());
      ActivateBackward(f, test.d_out.read(), test.x.read(), test.up.read(), d_x.view(), d_up.view());
      std::vector<std::vector<T>> all = {out.Values(), d_x.Values(), d_up.Values()};
      return all;
    };
    const auto expected = run();
    for (const int threads : {2, 4}) {
      SetNumThreads(threads);
      const auto got = run();
      for (std::size_t k = 0; k < got.size(); ++k) EXPECT_TRUE(Identical(got[k], expected[k])) << threads;
    }
    Activate(f, test.x.read(), {}, out.view());
    Activate(f, joined.x.read(), {}, row.view());
    EXPECT_TRUE(Identical(out.Values(), row.Values()));
    Activate(f, joined.x.read(), {}, joined.x.view());
    EXPECT_TRUE(Identical(joined.x.Values(), row.Values()));
    joined.x.ForEach([values = test.x.Values(), i = std::size_t{0}](T& element) mutable { element = values[i++]; });
  }
}
TEST_P(ActivationTest, SameBitsForAnyThreadCountAndPlace) {
  CheckBits<Float16>();
  CheckBits<BFloat16>();
  CheckBits<float>();
  CheckBits<double>();
}

// Large results use non-temporal stores, except in place: the same bits for any alignment of the rows.
template <typename T>
void CheckNonTemporalStores() {
  const auto smaller = static_cast<std::int64_t>(sizeof(float) / sizeof(T));
  for (const auto& shape : {std::array<std::int64_t, 2>{9000 * smaller, 1001}, {1'500'000 * smaller, 6}}) {
    const Tensor<T, 2> x(shape, Guard::kAfter, {0, 1}, 3), out(shape, Guard::kAfter, {0, 1}, 3);
    FillPeriodic(x);
    Activate(Activation::kSilu, x.read(), {}, out.view());
    Activate(Activation::kSilu, x.read(), {}, x.view());
    EXPECT_TRUE(Identical(out.Values(), x.Values()));
    EXPECT_TRUE(out.PaddingIntact());
  }
}
TEST_P(ActivationTest, NonTemporalStores) {
  CheckNonTemporalStores<BFloat16>();
  CheckNonTemporalStores<float>();
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(ActivationTest);

}  // namespace
}  // namespace headwise::testing
