#include "headwise/alibi.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class AlibiTest : public OnTarget {};

using Axes = std::array<std::int64_t, 4>;

template <typename T>
struct Case {
  Tensor<T, 4> scores;
  Tensor<Accumulator<T>, 1> slopes;
  Guard guard;

  explicit Case(Axes shape, Guard guard = Guard::kAfter)
      : scores(shape, guard, {0, 1, 2, 3}, 3), slopes({shape[1]}, guard), guard(guard) {
    Random random(static_cast<std::uint64_t>(shape[2] * 1000 + shape[3]));
    FillNormal(scores, random);
    FillNormal(slopes, random);
  }

  std::vector<T> Run(std::int64_t offset) const {
    const Tensor<T, 4> out(scores.view().shape, guard, {0, 1, 2, 3}, 3);
    const ReadOnly inputs(scores, slopes);
    AddAlibi(scores.read(), slopes.data(), offset, out.view());
    EXPECT_TRUE(out.PaddingIntact());
    return out.Values();
  }

  void Check(std::int64_t offset) const {
    // The rounding error is that of the bias, which may be larger than the result.
    const auto distance = static_cast<double>(scores.view().shape[3] + std::abs(offset) + scores.view().shape[2]);
    const std::vector<double> expected = reference::AddAlibi(scores.read(), slopes.data(), offset);
    EXPECT_TRUE(Near(Run(offset), expected, 4 * distance * kEpsilon<T>, kEpsilon<T>))
        << "keys " << scores.view().shape[3] << ", offset " << offset;
  }
};

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t key_len : Sizes()) {
      for (const std::int64_t offset : {0, 5, -7, 1000}) Case<T>({2, 3, 5, key_len}, guard).Check(offset);
    }
  }
}
TEST_P(AlibiTest, EverySizeNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// With zero scores the results are the biases, which are exact if slope and distance are.
template <typename T>
void CheckExact() {
  const Case<T> test({1, 2, 3, 100'000});
  test.scores.ForEach([](T& element) { element = T{0}; });
  test.slopes.data()[0] = 0.5;
  test.slopes.data()[1] = -2;
  EXPECT_TRUE(Near(test.Run(40'000), reference::AddAlibi(test.scores.read(), test.slopes.data(), 40'000), 0, 0));
}
TEST_P(AlibiTest, DistancesAreExact) {
  CheckExact<Float16>();
  CheckExact<BFloat16>();
  CheckExact<float>();
  CheckExact<double>();
}

template <typename T>
void CheckNonFinite() {
  for (const double odd : {kNaN, kInf, -kInf}) {
    for (std::int64_t where = 0; where < 37; ++where) {
      const Case<T> test({1, 1, 3, 37});
      *test.scores.view().at(0, 0, 1, where) = reference::Nearest<T>(odd);
      test.Check(0);
    }
  }
}
TEST_P(AlibiTest, NaNAndInfinityStayInTheirPlace) {
  CheckNonFinite<Float16>();
  CheckNonFinite<BFloat16>();
  CheckNonFinite<float>();
  CheckNonFinite<double>();
}

template <typename T>
void CheckInPlaceAndThreads() {
  const Case<T> test({2, 3, 200, 701});
  SetNumThreads(1);
  const std::vector<T> expected = test.Run(3);
  for (const int threads : {2, 4}) {
    SetNumThreads(threads);
    EXPECT_TRUE(Identical(test.Run(3), expected)) << threads << " threads";
  }
  AddAlibi(test.scores.read(), test.slopes.data(), 3, test.scores.view());
  EXPECT_TRUE(Identical(test.scores.Values(), expected));
  EXPECT_TRUE(test.scores.PaddingIntact());
}
TEST_P(AlibiTest, InPlaceAndSameBitsForAnyThreadCount) {
  CheckInPlaceAndThreads<Float16>();
  CheckInPlaceAndThreads<BFloat16>();
  CheckInPlaceAndThreads<float>();
  CheckInPlaceAndThreads<double>();
}

// Large results use non-temporal stores, except in place: the same bits for any alignment of the rows.
template <typename T>
void CheckNonTemporalStores() {
  const Case<T> test({1, 2, 4500 * static_cast<std::int64_t>(sizeof(float) / sizeof(T)), 1001});
  const std::vector<T> expected = test.Run(3);
  AddAlibi(test.scores.read(), test.slopes.data(), 3, test.scores.view());
  EXPECT_TRUE(Identical(test.scores.Values(), expected));
}

TEST_P(AlibiTest, NonTemporalStores) {
  CheckNonTemporalStores<BFloat16>();
  CheckNonTemporalStores<float>();
}

TEST_P(AlibiTest, Empty) {
  for (const Axes shape : {Axes{0, 2, 3, 4}, {2, 0, 3, 4}, {2, 2, 0, 4}, {2, 2, 3, 0}}) Case<float>(shape).Check(1);
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(AlibiTest);

}  // namespace
}  // namespace headwise::testing
