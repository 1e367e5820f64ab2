#include "headwise/attention.h"

#include <utility>

#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionTest : public OnTarget {};

// Every option at random. Sizes are mostly small, so that tails, blocks and their combinations come up often.
template <typename T>
AttentionCase<T> RandomCase(std::uint64_t seed) {
  Random random(seed);
  const auto size = [&](std::int64_t small, std::int64_t large) {
    return Chance(random, 0.85) ? Integer(random, 1, small) : Integer(random, 1, large);
  };
  AttentionShape shape;
  shape.batch = Integer(random, 1, 2);
  shape.kv_heads = Integer(random, 1, 2);
  shape.group = Chance(random, 0.5) ? 1 : Integer(random, 2, 4);
  shape.query_len = size(20, 70);
  shape.key_len = size(70, 600);
  shape.head_dim = size(40, 130);
  shape.value_dim = Chance(random, 0.5) ? shape.head_dim : size(40, 130);
  shape.guard = Chance(random, 0.7) ? Guard::kAfter : Guard::kBefore;
  shape.order = Chance(random, 0.5) ? kHeadsFirst : kSeqFirst;
  shape.pad = Chance(random, 0.5) ? 0 : 3;

  AttentionCase<T> test(shape, seed);
  const auto full = [&] {
    return std::array<bool, 4>{Chance(random, 0.6), Chance(random, 0.6), Chance(random, 0.6), Chance(random, 0.8)};
  };
  if (Chance(random, 0.7)) test.WantLse();
  if (Chance(random, 0.4)) test.WantWeights();
  for (std::int64_t masks = Chance(random, 0.4) ? Integer(random, 1, 2) : 0; masks > 0; --masks) {
    test.AddKeep(Chance(random, 0.3) ? 0.1 : 0.7, full());
  }
  for (std::int64_t biases = Chance(random, 0.4) ? Integer(random, 1, 2) : 0; biases > 0; --biases) {
    test.AddBias(1, Chance(random, 0.5) ? 0 : 0.3, full());
  }
  if (kIs16Bit<T> && Chance(random, 0.3)) test.AddStoredBias(1, Chance(random, 0.5) ? 0 : 0.3, full());
  if (Chance(random, 0.3))
    test.AddDropout(0.3, Chance(random, 0.8) ? std::array<bool, 4>{true, true, true, true} : full());
  if (Chance(random, 0.3)) {
    const std::array<bool, 3> axes{Chance(random, 0.3), Chance(random, 0.7), Chance(random, 0.4)};
    test.AddRelativeBias(1, Chance(random, 0.7) ? 0 : 0.3, Integer(random, 0, 60), axes);
  }
  if (Chance(random, 0.3)) test.AddSlopes(0.2);
  if (Chance(random, 0.3)) test.AddSinks();
  if (Chance(random, 0.3)) test.args.spec.softcap = Chance(random, 0.5) ? 1.5 : 30;
  if (Chance(random, 0.3)) test.args.spec.left = Integer(random, 0, 40);
  if (Chance(random, 0.5)) test.args.spec.right = Chance(random, 0.6) ? 0 : Integer(random, 0, 40);
  if (Chance(random, 0.5)) {
    test.args.spec.offset = Chance(random, 0.6) ? shape.key_len - shape.query_len : Integer(random, -80, 700);
  }
  if (Chance(random, 0.2)) test.args.spec.scale = Chance(random, 0.5) ? 0 : -0.3;
  if (Chance(random, 0.2)) test.AddKeyLengths(Chance(random, 0.5));
  return test;
}

template <typename T>
void CheckRandom(std::uint64_t cases) {
  int poisoned = 0;
  for (std::uint64_t seed = 0; seed < cases && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    AttentionCase<T> test = RandomCase<T>(seed);
    poisoned += test.Poison();
    test.Check();
  }
  EXPECT_GT(poisoned, 0);
}
TEST_P(AttentionTest, AllKeywordsAtRandomFloat16) { CheckRandom<Float16>(100); }
TEST_P(AttentionTest, AllKeywordsAtRandomBFloat16) { CheckRandom<BFloat16>(100); }
TEST_P(AttentionTest, AllKeywordsAtRandomFloat) { CheckRandom<float>(300); }
TEST_P(AttentionTest, AllKeywordsAtRandomDouble) { CheckRandom<double>(200); }

template <typename T>
void CheckWidths() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (std::int64_t width = 1; width <= 130; width += width < 35 ? 1 : 5) {
      AttentionShape shape;
      shape.query_len = 3, shape.key_len = 21, shape.head_dim = width, shape.value_dim = 131 - width;
      shape.guard = guard;
      AttentionCase<T>(shape, 1).Check();
    }
  }
}
TEST_P(AttentionTest, EveryWidth) {
  CheckWidths<Float16>();
  CheckWidths<BFloat16>();
  CheckWidths<float>();
  CheckWidths<double>();
}

template <typename T>
void CheckLengths() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t length : Sizes()) {
      for (const bool weights : {false, true}) {
        AttentionShape shape;
        shape.group = 2, shape.guard = guard;
        shape.query_len = length, shape.key_len = 19;
        AttentionCase<T> queries(shape, 2);
        shape.query_len = 5, shape.key_len = length;
        AttentionCase<T> keys(shape, 3);
        for (AttentionCase<T>* test : {&queries, &keys}) {
          test->WantLse();
          if (weights) test->WantWeights();
          test->Check();
          test->args.spec.right = 0;
          test->Check();
        }
      }
    }
  }
}
TEST_P(AttentionTest, EveryLength) {
  CheckLengths<Float16>();
  CheckLengths<BFloat16>();
  CheckLengths<float>();
  CheckLengths<double>();
}

// All array arguments at once: of full size and broadcast, with and without padding between rows, for decode and for
// many queries. Guard pages detect access out of bounds.
template <typename T>
void CheckEveryArgument(std::int64_t queries) {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t length : Sizes()) {
      SCOPED_TRACE(::testing::Message() << queries << " queries, " << length << " keys");
      AttentionShape shape;
      shape.batch = 2, shape.group = 2, shape.query_len = queries, shape.key_len = length;
      shape.head_dim = 1 + length % 19, shape.value_dim = 1 + length % 21;
      shape.guard = guard, shape.pad = length % 4, shape.order = length % 2 ? kSeqFirst : kHeadsFirst;
      AttentionCase<T> test(shape, 19);
      test.WantLse();
      test.AddKeep(0.7);
      test.AddKeep(0.9, {false, true, false, true});
      test.AddBias(1, 0.1, {true, false, true, true});
      test.AddBias(1, 0.1, {false, true, true, false});
      test.AddDropout(0.3);
      test.AddRelativeBias(1, 0.1, 20, {true, true, true});
      test.AddSlopes(0.2);
      test.AddSinks();
      test.Poison();
      test.Check();
      test.WantWeights();
      test.Check();
    }
  }
}
TEST_P(AttentionTest, EveryArgumentNothingOutOfBounds) {
  for (const std::int64_t queries : {2, 9}) {
    CheckEveryArgument<Float16>(queries);
    CheckEveryArgument<BFloat16>(queries);
    CheckEveryArgument<float>(queries);
    CheckEveryArgument<double>(queries);
  }
}

// Masks that keep all or nothing of whole tiles of scores: all, documents, stripes, one key per query, one head.
template <typename T>
void CheckMaskPatterns(std::int64_t queries) {
  for (int pattern = 0; pattern < 6; ++pattern) {
    AttentionShape shape;
    shape.group = 2, shape.query_len = queries, shape.key_len = 700;
    for (const bool weights : {false, true}) {
      SCOPED_TRACE(::testing::Message() << queries << " queries, pattern " << pattern);
      AttentionCase<T> test(shape, 15);
      test.WantLse();
      if (weights) test.WantWeights();
      test.AddKeepWhere([&](std::int64_t h, std::int64_t i, std::int64_t j) {
        if (pattern == 0) return true;
        if (pattern == 1) return i / 17 == j / 170;
        if (pattern == 2) return j / 40 % 3 == 1;
        if (pattern == 3) return j == (37 * i + 300 * h) % 700;
        if (pattern == 4) return h == 1 && j >= 256;
        return i % 12 != 3 && j < 512;
      });
      if (pattern == 5) test.AddKeepWhere([](std::int64_t, std::int64_t i, std::int64_t j) { return i + 300 < j; });
      EXPECT_EQ(test.Poison() > 0, pattern != 0 && !(pattern == 1 && queries > 4 * 17));
      test.Check();
      test.args.spec.right = 0, test.args.spec.offset = 400;
      test.Check();
    }
  }
}
TEST_P(AttentionTest, MaskPatterns) {
  CheckMaskPatterns<Float16>(30);
  CheckMaskPatterns<BFloat16>(30);
  for (const std::int64_t queries : {1, 4, 30, 75}) {
    CheckMaskPatterns<float>(queries);
    CheckMaskPatterns<double>(queries);
  }
}

// Queries that keep nothing: output and weights 0, lse -inf, or the sink.
template <typename T>
void CheckNothingKept() {
  for (const bool sinks : {false, true}) {
    for (const int how : {0, 1, 2, 3}) {
      AttentionShape shape;
      shape.group = 2, shape.query_len = 9, shape.key_len = 37;
      AttentionCase<T> test(shape, 6);
      test.WantLse();
      test.WantWeights();
      if (sinks) test.AddSinks();
      if (how == 0) test.AddKeep(0);
      if (how == 1) test.AddBias(1, 1);
      if (how == 2) test.args.spec.left = 3, test.args.spec.offset = 100;
      if (how == 3) test.args.spec.right = 0, test.args.spec.offset = -5;
      EXPECT_GT(test.Poison(), 0);
      test.Check();
      test.args.weights = {};
      test.Check();
      if (how < 3 && !sinks) {
        for (const T element : test.output.Values()) EXPECT_EQ(reference::ToDouble(element), 0);
        for (const auto element : test.lse.Values()) EXPECT_EQ(element, -kInf);
      }
    }
  }
}
TEST_P(AttentionTest, NothingKept) {
  CheckNothingKept<Float16>();
  CheckNothingKept<BFloat16>();
  CheckNothingKept<float>();
  CheckNothingKept<double>();
}

// Keys and values of stride 0 (one for all), reversed rows, and rows a multiple of 4 KiB apart.
template <typename T>
void CheckStrides() {
  AttentionShape shape;
  shape.batch = 2, shape.kv_heads = 2, shape.query_len = 30, shape.key_len = 70, shape.head_dim = 33;
  AttentionCase<T> test(shape, 10);
  test.args.key.stride[0] = test.args.value.stride[1] = 0;
  test.Check();
  test.args.key.data = test.key.read().at(0, 0, 69);
  test.args.key.stride[2] = -test.args.key.stride[2];
  test.args.query.stride[2] = 0;
  test.Check();
  shape.pad = 4096 - 33;
  AttentionCase<T>(shape, 11).Check();
}
TEST_P(AttentionTest, Strides) {
  CheckStrides<Float16>();
  CheckStrides<BFloat16>();
  CheckStrides<float>();
  CheckStrides<double>();
}

template <typename T>
void CheckThreads() {
  AttentionShape prefill, decode, grouped;
  prefill.batch = 1, prefill.kv_heads = 3, prefill.query_len = 300, prefill.key_len = 500, prefill.head_dim = 40;
  decode.kv_heads = 2, decode.key_len = 9000, decode.head_dim = 64;
  grouped.kv_heads = 2, grouped.group = 4, grouped.query_len = 90, grouped.key_len = 500;
  for (const AttentionShape& shape : {prefill, decode, grouped}) {
    for (const bool weights : {false, true}) {
      AttentionCase<T> test(shape, 12);
      test.WantLse();
      if (weights) test.WantWeights();
      if (shape.query_len > 1) test.args.spec.right = 0, test.args.spec.offset = shape.key_len - shape.query_len;
      SetNumThreads(1);
      if constexpr (kIs16Bit<T>) {
        test.Run();
      } else {
        test.Check();
      }
      const std::vector<T> output = test.output.Values(), p = test.weights.Values();
      const std::vector<Accumulator<T>> lse = test.lse.Values();
      for (const int threads : {2, 4}) {
        SetNumThreads(threads);
        test.Run();
        EXPECT_TRUE(Identical(test.output.Values(), output)) << threads << " threads";
        EXPECT_TRUE(Identical(test.lse.Values(), lse)) << threads << " threads";
        EXPECT_TRUE(Identical(test.weights.Values(), p)) << threads << " threads";
      }
    }
  }
}
TEST_P(AttentionTest, SameBitsForAnyThreadCount) {
  CheckThreads<Float16>();
  CheckThreads<BFloat16>();
  CheckThreads<float>();
  CheckThreads<double>();
}

// A query's output does not depend on the other queries of the call, among calls of many queries and among decode
// calls.
template <typename T>
void CheckRowsAreIndependent(std::int64_t queries, std::int64_t count, double growth) {
  AttentionShape shape;
  shape.query_len = queries, shape.key_len = 1300;
  AttentionCase<T> all(shape, 13);
  if (growth > 0) Grow(all, growth);
  all.args.spec.right = 0, all.args.spec.offset = 1300 - queries;
  all.Run();
  for (std::int64_t first = 0; first + count <= queries; first += count / 3 + 1) {
    SCOPED_TRACE(::testing::Message() << count << " of " << queries << " from " << first);
    const Tensor<T, 4> output({1, 1, count, shape.value_dim});
    AttentionArgs<T> some = all.args;
    some.query.data = all.query.read().at(0, 0, first);
    some.query.shape[2] = count;
    some.spec.offset += first;
    some.output = output.view();
    Attention(some);
    const T* rows = all.output.read().at(0, 0, first);
    EXPECT_TRUE(Identical(output.Values(), std::vector<T>(rows, rows + count * shape.value_dim)));
  }
}
TEST_P(AttentionTest, RowsAreIndependent) {
  for (const auto& [queries, count] : {std::pair{40, 20}, {61, 29}, {8, 1}, {7, 2}, {8, 5}}) {
    for (const double growth : {0.0, 4.0, 20.0}) {
      CheckRowsAreIndependent<Float16>(queries, count, growth);
      CheckRowsAreIndependent<BFloat16>(queries, count, growth);
      CheckRowsAreIndependent<float>(queries, count, growth);
      CheckRowsAreIndependent<double>(queries, count, growth);
    }
  }
}

TEST_P(AttentionTest, Empty) {
  for (const int what : {0, 1, 2, 3, 4}) {
    AttentionShape shape;
    shape.query_len = 3, shape.key_len = 5;
    if (what == 0) shape.batch = 0;
    if (what == 1) shape.kv_heads = 0;
    if (what == 2) shape.query_len = 0;
    if (what == 3) shape.key_len = 0;
    if (what == 4) shape.value_dim = 0;
    AttentionCase<float> test(shape, 14);
    test.WantLse();
    test.Check();
    if (what == 3) {
      for (const float element : test.output.Values()) EXPECT_EQ(element, 0);
      test.AddSinks();
      test.Check();
    }
  }
}

HEADWISE_ON_EVERY_TARGET(AttentionTest);

}  // namespace
}  // namespace headwise::testing
