// What the fuzzers have found of NaN and infinity in biases, sinks and rows.
#include "attention_case.h"
#include "base/parallel.h"
#include "testing/hooks.h"

namespace headwise::testing {
namespace {

class AttentionNonFiniteTest : public OnTarget {};

// A bias of -inf drops a key, NaN or +inf in another bias, or in a slope, or not.
template <typename T>
void CheckBiasesDrop(std::int64_t queries) {
  for (const double odd : {kNaN, kInf}) {
    for (const bool first : {true, false}) {
      AttentionShape shape;
      shape.query_len = queries, shape.key_len = 50;
      AttentionCase<T> test(shape, 21);
      const Tensor<Accumulator<T>, 4> drops({1, 1, queries, 50}), odds({1, 1, queries, 50});
      const auto fill = [](const auto& bias, double at_every_third) {
        std::int64_t n = 0;
        bias.ForEach([&](auto& element) {
          element = reference::Nearest<std::decay_t<decltype(element)>>(n++ % 3 == 0 ? at_every_third : 0);
        });
      };
      fill(drops, -kInf);
      fill(odds, odd);
      const auto check = [&] {
        test.Check();
        for (const auto element : test.lse.Values()) EXPECT_TRUE(std::isfinite(element));
      };
      test.WantLse();
      test.WantWeights();
      test.args.spec.bias = {first ? drops.read() : odds.read(), first ? odds.read() : drops.read()};
      check();
      if constexpr (kIs16Bit<T>) {  // one of the two in T
        const Tensor<T, 4> half({1, 1, queries, 50});
        fill(half, first ? odd : -kInf);
        test.args.spec.bias = {first ? drops.read() : odds.read(), half.read()};
        check();
      }

      AttentionCase<T> alone(shape, 22);
      alone.AddBias(1, 1);
      alone.AddSlopes(1);
      *const_cast<Accumulator<T>*>(alone.args.spec.alibi_slopes) = static_cast<Accumulator<T>>(-odd);
      alone.WantLse();
      alone.Check();
      for (const auto element : alone.lse.Values()) EXPECT_EQ(element, -kInf);
    }
  }
}
TEST_P(AttentionNonFiniteTest, ABiasDropsWhateverOthersAdd) {
  for (const std::int64_t queries : {3, 20}) {
    CheckBiasesDrop<Float16>(queries);
    CheckBiasesDrop<float>(queries);
    CheckBiasesDrop<double>(queries);
  }
}

// As one with a score of +inf.
template <typename T>
void CheckInfiniteSink(std::int64_t queries) {
  AttentionShape shape;
  shape.group = 2, shape.query_len = queries, shape.key_len = 50;
  AttentionCase<T> test(shape, 23);
  test.AddSinks();
  const_cast<Accumulator<T>*>(test.args.spec.sinks)[1] = static_cast<Accumulator<T>>(kInf);
  test.WantLse();
  test.WantWeights();
  test.Check();
  const auto lse = test.lse.Values();
  for (std::size_t i = 0; i < lse.size(); ++i) EXPECT_EQ(std::isnan(lse[i]), i >= lse.size() / 2) << i;
}
TEST_P(AttentionNonFiniteTest, AnInfiniteSinkMakesItsRowsNaN) {
  for (const std::int64_t queries : {3, 20}) {
    CheckInfiniteSink<BFloat16>(queries);
    CheckInfiniteSink<float>(queries);
    CheckInfiniteSink<double>(queries);
  }
}

// Not only up to where the keys of its block of queries end, which the number of threads decides.
template <typename T>
void CheckRowOfNaN() {
  AttentionShape shape;
  shape.query_len = 300, shape.key_len = 300;
  AttentionCase<T> test(shape, 24);
  test.args.spec.right = 0;
  for (std::int64_t i = 0; i < 300; i += 9) *test.query.view().at(0, 0, i, 0) = reference::Nearest<T>(kNaN);
  test.WantWeights();
  SetThreadsForAnyWork(true);
  for (const int threads : {1, 4}) {
    SetNumThreads(threads);
    test.Run();
    for (std::int64_t i = 0; i < 300; ++i) {
      for (std::int64_t j = 0; j < 300; ++j) {
        const double weight = reference::ToDouble(*test.weights.read().at(0, 0, i, j));
        ASSERT_EQ(std::isnan(weight), i % 9 == 0) << i << ", " << j << ", " << threads << " threads";
      }
    }
  }
  SetThreadsForAnyWork(false);
}
TEST_P(AttentionNonFiniteTest, ARowOfNaNIsNaNThroughout) {
  CheckRowOfNaN<Float16>();
  CheckRowOfNaN<float>();
  CheckRowOfNaN<double>();
}

HEADWISE_ON_EVERY_TARGET(AttentionNonFiniteTest);

}  // namespace
}  // namespace headwise::testing
