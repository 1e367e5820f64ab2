#include "headwise/rope.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class RopeTest : public OnTarget {};

using Axes = std::array<std::int64_t, 4>;
constexpr Axes kHeadsFirst{0, 1, 2, 3};  // (batch, heads, seq, dim) in memory
constexpr Axes kSeqFirst{0, 2, 1, 3};    // (batch, seq, heads, dim)

template <typename T>
struct Case {
  Tensor<T, 4> x;
  Tensor<Accumulator<T>, 4> cos, sin;
  Guard guard;
  Axes order;

  // If `shared`, all batch entries and heads share cos and sin.
  Case(Axes shape, bool shared, Guard guard = Guard::kAfter, Axes order = kHeadsFirst)
      : x(shape, guard, order, 3),
        cos({shared ? 1 : shape[0], shared ? 1 : shape[1], shape[2], shape[3] / 2}, guard),
        sin(cos.view().shape, guard),
        guard(guard),
        order(order) {
    Random random(static_cast<std::uint64_t>(shape[2] * 1000 + shape[3]));
    FillNormal(x, random);
    FillNormal(cos, random, 0.5);
    FillNormal(sin, random, 0.5);
  }

  View<const Accumulator<T>, 4> Broadcast(const Tensor<Accumulator<T>, 4>& table) const {
    View<const Accumulator<T>, 4> view = table.read();
    for (std::size_t axis : {0, 1}) {
      if (view.shape[axis] == 1) view.stride[axis] = 0;
      view.shape[axis] = x.view().shape[axis];
    }
    return view;
  }

  std::vector<T> Run(bool interleaved) const {
    const Tensor<T, 4> out(x.view().shape, guard, order, 3);
    const ReadOnly inputs(x, cos, sin);
    ApplyRope(x.read(), Broadcast(cos), Broadcast(sin), interleaved, out.view());
    EXPECT_TRUE(out.PaddingIntact());
    return out.Values();
  }

  void Check() const {
    for (const bool interleaved : {false, true}) {
      const auto expected = reference::ApplyRope(x.read(), Broadcast(cos), Broadcast(sin), interleaved);
      EXPECT_TRUE(Near(Run(interleaved), expected, 16 * kEpsilon<T>, 2 * kEpsilon<T>)) << "dim " << x.view().shape[3];
    }
  }
};

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const Axes order : {kHeadsFirst, kSeqFirst}) {
      for (const bool shared : {true, false}) {
        for (const std::int64_t pairs : Sizes()) Case<T>({2, 2, 3, 2 * pairs}, shared, guard, order).Check();
      }
    }
  }
}
TEST_P(RopeTest, EverySizeBothPairingsNothingOutOfBounds) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// Several blocks of positions, of which the last is partial.
template <typename T>
void CheckBlocks() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const Axes order : {kHeadsFirst, kSeqFirst}) {
      for (const bool shared : {true, false}) {
        Case<T>({1, 3, 300, 64}, shared, guard, order).Check();
        Case<T>({2, 1, 5, 10'000}, shared, guard, order).Check();
      }
    }
  }
}
TEST_P(RopeTest, Blocks) {
  CheckBlocks<Float16>();
  CheckBlocks<BFloat16>();
  CheckBlocks<float>();
  CheckBlocks<double>();
}

template <typename T>
void CheckInPlaceAndThreads() {
  for (const Axes order : {kHeadsFirst, kSeqFirst}) {
    for (const bool interleaved : {false, true}) {
      const Case<T> test({2, 4, 600, 130}, true, Guard::kAfter, order);
      SetNumThreads(1);
      const std::vector<T> expected = test.Run(interleaved);
      for (const int threads : {2, 4}) {
        SetNumThreads(threads);
        EXPECT_TRUE(Identical(test.Run(interleaved), expected)) << threads << " threads";
      }
      ApplyRope(test.x.read(), test.Broadcast(test.cos), test.Broadcast(test.sin), interleaved, test.x.view());
      EXPECT_TRUE(Identical(test.x.Values(), expected));
      EXPECT_TRUE(test.x.PaddingIntact());
    }
  }
}
TEST_P(RopeTest, InPlaceAndSameBitsForAnyThreadCount) {
  CheckInPlaceAndThreads<Float16>();
  CheckInPlaceAndThreads<BFloat16>();
  CheckInPlaceAndThreads<float>();
  CheckInPlaceAndThreads<double>();
}

template <typename T>
void CheckNonFinite() {
  for (const double odd : {kNaN, kInf, -kInf}) {
    for (std::int64_t where = 0; where < 74; ++where) {
      const Case<T> test({1, 1, 3, 74}, true);
      *test.x.view().at(0, 0, 1, where) = reference::Nearest<T>(odd);
      test.Check();
    }
  }
}
TEST_P(RopeTest, NaNAndInfinityStayInTheirPair) {
  CheckNonFinite<Float16>();
  CheckNonFinite<BFloat16>();
  CheckNonFinite<float>();
  CheckNonFinite<double>();
}

// Large results use non-temporal stores, except in place: the same bits for any alignment of the rows.
template <typename T>
void CheckNonTemporalStores() {
  const Axes shape{1, 2, 35'000 * static_cast<std::int64_t>(sizeof(float) / sizeof(T)), 122};
  for (const bool interleaved : {false, true}) {
    const Tensor<T, 4> x(shape, Guard::kAfter, kHeadsFirst, 3), out(shape, Guard::kAfter, kHeadsFirst, 3);
    const Tensor<float, 4> angles({1, 1, shape[2], shape[3] / 2});
    FillPeriodic(x);
    FillPeriodic(angles);
    View<const float, 4> table = angles.read();
    table.shape[1] = shape[1];
    table.stride[1] = 0;
    ApplyRope(x.read(), table, table, interleaved, out.view());
    ApplyRope(x.read(), table, table, interleaved, x.view());
    EXPECT_TRUE(Identical(out.Values(), x.Values()));
    EXPECT_TRUE(out.PaddingIntact());
  }
}
TEST_P(RopeTest, NonTemporalStores) {
  CheckNonTemporalStores<BFloat16>();
  CheckNonTemporalStores<float>();
}

TEST_P(RopeTest, Empty) {
  for (const Axes shape : {Axes{0, 2, 3, 4}, {2, 0, 3, 4}, {2, 2, 0, 4}, {2, 2, 3, 0}})
    Case<float>(shape, false).Check();
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(RopeTest);

}  // namespace
}  // namespace headwise::testing
