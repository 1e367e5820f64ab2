#include "headwise/attention.h"

#include <utility>

#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionTest : public OnTarget {};

// Everything at random. Sizes favour the small, so that tails, blocks and their combinations come up often.
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
    test.AddDrop(0.3, Chance(random, 0.8) ? std::array<bool, 4>{true, true, true, true} : full());
  if (Chance(random, 0.3)) test.AddSlopes(0.2);
  if (Chance(random, 0.3)) test.AddSinks();
  if (Chance(random, 0.3)) test.args.spec.softcap = Chance(random, 0.5) ? 1.5 : 30;
  if (Chance(random, 0.3)) test.args.spec.left = Integer(random, 0, 40);
  if (Chance(random, 0.5)) test.args.spec.right = Chance(random, 0.6) ? 0 : Integer(random, 0, 40);
  if (Chance(random, 0.5)) {
    test.args.spec.offset = Chance(random, 0.6) ? shape.key_len - shape.query_len : Integer(random, -80, 700);
  }
  if (Chance(random, 0.2)) test.args.spec.scale = Chance(random, 0.5) ? 0 : -0.3;
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

// All that has memory of its own, at once: of full size and broadcast, rows apart and together, for few rows and many.
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
      test.AddDrop(0.3);
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

// NaN or infinity in a key or value that some queries keep: theirs are NaN, or infinite, the others' are not.
// A score of -inf drops its key.
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
TEST_P(AttentionTest, NonFiniteReachesThoseWhoKeepIt) {
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

// Masks that leave whole tiles of scores out, or in: nothing, everything, documents side by side, stripes, one key
// each.
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

// Scores far beyond the range of exp, of either sign: the maximum is what keeps them finite.
template <typename T>
void CheckLargeScores() {
  for (const double scale : {30.0, 3000.0, -3000.0}) {
    AttentionShape shape;
    shape.query_len = 20, shape.key_len = 300;
    AttentionCase<T> test(shape, 7);
    test.args.spec.scale = scale;
    test.WantLse();
    test.Check();
    test.WantWeights();
    test.Check();
  }
  // The largest score comes last, again and again: the running maximum moves in every block of keys.
  for (const std::int64_t queries : {7, 17}) {
    AttentionShape shape;
    shape.query_len = queries, shape.key_len = 1500;
    AttentionCase<T> test(shape, 8);
    for (std::int64_t j = 0; j < 1500; ++j) {
      for (std::int64_t d = 0; d < 8; ++d)
        *test.key.view().at(0, 0, j, d) = reference::Nearest<T>(0.01 * static_cast<double>(j));
    }
    test.WantLse();
    test.Check();
  }
}
TEST_P(AttentionTest, LargeScores) {
  CheckLargeScores<Float16>();
  CheckLargeScores<BFloat16>();
  CheckLargeScores<float>();
  CheckLargeScores<double>();
}

template <typename T>
void Multiply(T& number, double factor) {
  number = reference::Nearest<T>(reference::ToDouble(number) * factor);
}

// Scores of every other query grow by `step` from each hundred keys to the next, of every third by twice that: among
// rows computed together some maxima move, and the others do not.
template <typename T>
void Grow(const AttentionCase<T>& test, double step) {
  for (std::int64_t i = 0; i < test.shape.query_len; ++i) {
    *test.query.view().at(0, 0, i, 0) = reference::Nearest<T>(i % 3 == 2 ? 2 : i % 2);
  }
  for (std::int64_t j = 0; j < test.shape.key_len; ++j) {
    const double height = step / test.args.spec.scale * static_cast<double>(j / 100);
    *test.key.view().at(0, 0, j, 0) = reference::Nearest<T>(height);
  }
}

template <typename T>
void CheckGrowingScores() {
  AttentionShape shape;
  shape.query_len = 37, shape.key_len = 430;
  for (const double step : {-6.0, 2.0, 5.0, 6.0, 40.0}) {
    SCOPED_TRACE(::testing::Message() << "step " << step);
    AttentionCase<T> test(shape, 17);
    Grow(test, step);
    test.WantLse();
    test.Check();
    test.args.spec.right = 0, test.args.spec.offset = 350;
    test.Check();
    test.WantWeights();
    test.Check();
    // Numbers that would become infinite, times a weight of more than 1.
    if (Greatest<T>() < 0x1p122) continue;
    AttentionCase<T> large(shape, 17);
    Grow(large, step);
    for (std::int64_t j = 0; j < shape.key_len; ++j) Multiply(*large.value.view().at(0, 0, j, j % 8), 0x1p122);
    large.Check();
  }
}
TEST_P(AttentionTest, GrowingScores) {
  CheckGrowingScores<Float16>();
  CheckGrowingScores<BFloat16>();
  CheckGrowingScores<float>();
  CheckGrowingScores<double>();
}

// Numbers of many sizes in one row; queries and keys beyond what bfloat16 parts hold.
template <typename T>
void CheckMagnitudes() {
  AttentionShape shape;
  shape.query_len = 40, shape.key_len = 200, shape.head_dim = 48;
  for (const double size : {1e-30, 1e-4, 1e4, 1e30, 2e38}) {
    if (std::abs(std::log10(size)) > std::log10(Greatest<T>())) continue;
    SCOPED_TRACE(::testing::Message() << "size " << size);
    AttentionCase<T> test(shape, 16);
    test.WantLse();
    // Large numbers meet small ones, so that scores stay ordinary.
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      const double factor = d % 3 == 0 ? size : d % 3 == 1 ? 1 / size : 1;
      for (std::int64_t i = 0; i < shape.query_len; ++i) Multiply(*test.query.view().at(0, 0, i, d), factor);
      for (std::int64_t j = 0; j < shape.key_len; ++j) Multiply(*test.key.view().at(0, 0, j, d), 1 / factor);
    }
    test.CheckWithin(300 * kEpsilon<T>);
    for (std::int64_t j = 0; j < shape.key_len; j += 7)
      *test.value.view().at(0, 0, j, j % 8) = reference::Nearest<T>(size);
    test.CheckWithin(300 * kEpsilon<T>);
  }
}
TEST_P(AttentionTest, Magnitudes) {
  CheckMagnitudes<Float16>();
  CheckMagnitudes<BFloat16>();
  CheckMagnitudes<float>();
  CheckMagnitudes<double>();
}

struct Errors {
  double absolute = 0, relative = 0;  // the latter to the largest value of the column
};

Errors ErrorsOf(const AttentionCase<float>& test) {
  test.Run();
  const std::vector<double> expected = reference::Attention(test.args).output;
  const std::vector<float> got = test.output.Values();
  std::vector<double> largest(static_cast<std::size_t>(test.shape.value_dim));
  std::size_t n = 0;
  test.value.ForEach([&](float& value) {
    double& of_column = largest[n++ % largest.size()];
    of_column = std::max(of_column, static_cast<double>(std::abs(value)));
  });
  Errors errors;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - expected[i]);
    errors.absolute = std::max(errors.absolute, error);
    errors.relative = std::max(errors.relative, error / largest[i % largest.size()]);
  }
  return errors;
}

// Fewer bfloat16 products where the target has them, the same bits everywhere else.
TEST_P(AttentionTest, Precision) {
  AttentionShape shape;
  shape.group = 2, shape.query_len = 70, shape.key_len = 1024, shape.head_dim = 64, shape.value_dim = 64;
  AttentionCase<float> test(shape, 17);
  EXPECT_LE(ErrorsOf(test).absolute, 5e-7);
  const std::vector<float> highest = test.output.Values();
  for (const auto& [precision, bound] : {std::pair{Precision::kHigh, 5e-6}, {Precision::kMedium, 2e-3}}) {
    test.args.spec.precision = precision;
    EXPECT_LE(ErrorsOf(test).absolute, bound);
    EXPECT_EQ(Identical(test.output.Values(), highest), !HasBf16Products<float>(precision));
  }

  // Float16 has two parts at most, BFloat16 one.
  shape.query_len = 20, shape.key_len = 300;
  AttentionCase<Float16> half(shape, 17);
  AttentionCase<BFloat16> upper_half(shape, 17);
  half.Run();
  upper_half.Run();
  const std::vector<Float16> half_output = half.output.Values();
  const std::vector<BFloat16> upper_half_output = upper_half.output.Values();
  for (const Precision precision : {Precision::kHigh, Precision::kMedium}) {
    half.args.spec.precision = upper_half.args.spec.precision = precision;
    half.CheckWithin(0x1p-7);
    const bool same = precision == Precision::kHigh || !HasBf16Products<Float16>(precision);
    EXPECT_EQ(Identical(half.output.Values(), half_output), same);
    upper_half.Run();
    EXPECT_TRUE(Identical(upper_half.output.Values(), upper_half_output));
  }
}

// 1e-20 to 1e15.
double ManySizes(std::int64_t i) { return std::pow(10, static_cast<double>(i * 13 % 36 - 20)); }

enum class Input { kNormal, kManySizes, kCancelling, kSubnormal };

AttentionCase<float> HardCase(Input input) {
  AttentionShape shape;
  shape.query_len = 70, shape.key_len = 500, shape.head_dim = 64, shape.value_dim = 40;
  AttentionCase<float> test(shape, 18);
  for (std::int64_t j = 0; j < shape.key_len; ++j) {
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      float& key = *test.key.view().at(0, 0, j, d);
      if (input == Input::kManySizes) Multiply(key, 1 / ManySizes(d));
      if (input == Input::kCancelling && j % 2 == 1) key = *test.key.view().at(0, 0, j - 1, d);
    }
    for (std::int64_t c = 0; c < shape.value_dim; ++c) {
      float& value = *test.value.view().at(0, 0, j, c);
      if (input == Input::kManySizes) Multiply(value, ManySizes(c));
      if (input == Input::kCancelling && j % 2 == 0) Multiply(value, 1e4);
      if (input == Input::kCancelling && j % 2 == 1) value -= *test.value.view().at(0, 0, j - 1, c);
      if (input == Input::kSubnormal) Multiply(value, std::ldexp(1, static_cast<int>(-110 - c)));
    }
  }
  for (std::int64_t i = 0; input == Input::kManySizes && i < shape.query_len; ++i) {
    for (std::int64_t d = 0; d < shape.head_dim; ++d) Multiply(*test.query.view().at(0, 0, i, d), ManySizes(d));
  }
  return test;
}

// Float32 in parts of bfloat16 is off by no more than multiply-adds are. Where parts are subnormal, they count as 0.
TEST_P(AttentionTest, HardInputsOnTiles) {
  if (GetTarget() != "avx512_amx") GTEST_SKIP() << GetTarget() << " has no tiles";
  for (const Input input : {Input::kNormal, Input::kManySizes, Input::kCancelling, Input::kSubnormal}) {
    SCOPED_TRACE(::testing::Message() << "input " << static_cast<int>(input));
    const AttentionCase<float> test = HardCase(input);
    const Errors tiles = ErrorsOf(test);
    SetTarget("avx512");
    const Errors plain = ErrorsOf(test);
    SetTarget(GetParam());
    if (input == Input::kSubnormal) {
      EXPECT_LE(tiles.absolute, 0x1p-124);
    } else {
      EXPECT_LE(tiles.relative, 1.5 * plain.relative + kEpsilon<float> / 16);
    }
  }
}

// Equal weights over very many keys: nothing is lost in the sums.
template <typename T>
void CheckManyKeys(std::int64_t queries, std::int64_t keys) {
  AttentionShape shape;
  shape.query_len = queries, shape.key_len = keys, shape.value_dim = 3;
  AttentionCase<T> test(shape, 9);
  FillNormal(test.value, test.random, 1, 1);
  test.WantLse();
  test.Check();
  test.WantWeights();
  test.Check();
}
TEST_P(AttentionTest, ManyKeys) {
  for (const std::int64_t queries : {2, 9}) {
    CheckManyKeys<Float16>(queries, 5'000);
    CheckManyKeys<BFloat16>(queries, 5'000);
    CheckManyKeys<float>(queries, queries == 2 ? 50'000 : 20'000);
    CheckManyKeys<double>(queries, queries == 2 ? 50'000 : 20'000);
  }
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

// A query's output depends on that query alone, whichever others are in the call: among calls of many queries, and
// among those of few, which go another way.
template <typename T>
void CheckRowsAreIndependent(std::int64_t queries, std::int64_t part, double growth) {
  AttentionShape shape;
  shape.query_len = queries, shape.key_len = 1300;
  AttentionCase<T> all(shape, 13);
  if (growth > 0) Grow(all, growth);
  all.args.spec.right = 0, all.args.spec.offset = 1300 - queries;
  all.Run();
  for (std::int64_t first = 0; first + part <= queries; first += part / 3 + 1) {
    SCOPED_TRACE(::testing::Message() << part << " of " << queries << " from " << first);
    const Tensor<T, 4> output({1, 1, part, shape.value_dim});
    AttentionArgs<T> some = all.args;
    some.query.data = all.query.read().at(0, 0, first);
    some.query.shape[2] = part;
    some.spec.offset += first;
    some.output = output.view();
    Attention(some);
    const T* rows = all.output.read().at(0, 0, first);
    EXPECT_TRUE(Identical(output.Values(), std::vector<T>(rows, rows + part * shape.value_dim)));
  }
}
TEST_P(AttentionTest, RowsAreIndependent) {
  for (const auto& [queries, part] : {std::pair{40, 20}, {61, 29}, {8, 1}, {7, 2}, {8, 5}}) {
    for (const double growth : {0.0, 4.0, 20.0}) {
      CheckRowsAreIndependent<Float16>(queries, part, growth);
      CheckRowsAreIndependent<BFloat16>(queries, part, growth);
      CheckRowsAreIndependent<float>(queries, part, growth);
      CheckRowsAreIndependent<double>(queries, part, growth);
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
