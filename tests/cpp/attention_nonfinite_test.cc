// NaN and infinity in queries, keys, values, biases, slopes and sinks.
#include "attention_case.h"
#include "base/parallel.h"
#include "testing/hooks.h"

namespace headwise::testing {
namespace {

class AttentionNonFiniteTest : public OnTarget {};

// A bias of -inf drops its key, even if another bias or the slope is NaN or +inf.
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
TEST_P(AttentionNonFiniteTest, ABiasOfMinusInfinityDropsWhateverIsAdded) {
  for (const std::int64_t queries : {3, 20}) {
    CheckBiasesDrop<Float16>(queries);
    CheckBiasesDrop<float>(queries);
    CheckBiasesDrop<double>(queries);
  }
}

// Two biases of the lowest number everywhere: uniform weights, not an empty row.
template <typename T>
void CheckLowestBiases(std::int64_t queries) {
  AttentionShape shape;
  shape.query_len = queries, shape.key_len = 50;
  AttentionCase<T> test(shape, 24);
  const Tensor<Accumulator<T>, 4> lowest({1, 1, queries, 50});
  lowest.ForEach([](Accumulator<T>& element) { element = std::numeric_limits<Accumulator<T>>::lowest(); });
  test.args.spec.bias = {lowest.read(), lowest.read()};
  test.WantLse();
  test.WantWeights();
  test.Check();
  for (const T weight : test.weights.Values()) EXPECT_NEAR(reference::ToDouble(weight), 0.02, 1e-4);
}
TEST_P(AttentionNonFiniteTest, SumsOfFiniteBiasesStayFinite) {
  for (const std::int64_t queries : {3, 20}) {
    CheckLowestBiases<Float16>(queries);
    CheckLowestBiases<BFloat16>(queries);
    CheckLowestBiases<float>(queries);
    CheckLowestBiases<double>(queries);
  }
}

// A row with a sink of +inf is NaN, as a row with a score of +inf.
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

// The weights of a NaN row are NaN for all keys, not only for the keys of its block of queries, whose size depends on
// the number of threads.
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

// NaN or infinity in a key or value changes the results of the queries that keep it, and no others. A score of -inf
// drops its key.
template <typename T>
void CheckNonFinite(std::int64_t queries, double odd) {
  for (const bool weights : {false, true}) {
    for (std::int64_t where = 0; where < 50; where += 16) {
      for (const bool in_key : {false, true}) {
        AttentionShape shape;
        shape.query_len = queries, shape.key_len = 50;
        AttentionCase<T> test(shape, 4);
        test.args.spec.right = 0, test.args.spec.offset = 50 - queries;
        test.WantLse();
        if (weights) test.WantWeights();
        *(in_key ? test.key : test.value).view().at(0, 0, where, 3) = reference::Nearest<T>(odd);
        test.Check();
        test.args.spec.left = 10;
        test.args.spec.softcap = 5;
        test.Check();
      }
    }
    // In a query, and in all keys.
    AttentionShape shape;
    shape.query_len = std::min<std::int64_t>(queries, 20), shape.key_len = 40;
    AttentionCase<T> test(shape, 5);
    if (weights) test.WantWeights();
    test.WantLse();
    *test.query.view().at(0, 0, shape.query_len / 3, 0) = reference::Nearest<T>(odd);
    test.Check();
    test.key.ForEach([odd](T& element) { element = reference::Nearest<T>(odd); });
    test.Check();
  }
}
TEST_P(AttentionNonFiniteTest, NonFiniteReachesOnlyQueriesThatKeepIt) {
  for (const std::int64_t queries : {50, 6, 1}) {
    for (const double odd : {kNaN, kInf, -kInf}) {
      SCOPED_TRACE(::testing::Message() << odd << ", " << queries << " queries");
      CheckNonFinite<Float16>(queries, odd);
      CheckNonFinite<BFloat16>(queries, odd);
      CheckNonFinite<float>(queries, odd);
      CheckNonFinite<double>(queries, odd);
    }
  }
}

HEADWISE_ON_EVERY_TARGET(AttentionNonFiniteTest);

}  // namespace
}  // namespace headwise::testing
