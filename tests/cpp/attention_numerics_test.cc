// Accuracy of attention: large and growing scores, magnitudes, precision, many keys.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "attention_case.h"
#include "headwise/attention.h"

namespace headwise::testing {
namespace {

class AttentionNumericsTest : public OnTarget {};

template <typename T>
void Multiply(T& number, double factor) {
  number = reference::Nearest<T>(reference::ToDouble(number) * factor);
}

// Scores far beyond the range of exp, of either sign: only the subtraction of the max keeps their weights finite.
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
  // Scores grow with the key: the running max changes in every key block.
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
TEST_P(AttentionNumericsTest, LargeScores) {
  CheckLargeScores<Float16>();
  CheckLargeScores<BFloat16>();
  CheckLargeScores<float>();
  CheckLargeScores<double>();
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
    // Values that overflow if they are multiplied by a weight above 1.
    if (MaxFinite<T>() < 0x1p122) continue;
    AttentionCase<T> large(shape, 17);
    Grow(large, step);
    for (std::int64_t j = 0; j < shape.key_len; ++j) Multiply(*large.value.view().at(0, 0, j, j % 8), 0x1p122);
    large.Check();
  }
}
TEST_P(AttentionNumericsTest, GrowingScores) {
  CheckGrowingScores<Float16>();
  CheckGrowingScores<BFloat16>();
  CheckGrowingScores<float>();
  CheckGrowingScores<double>();
}

// Numbers of many magnitudes in one row; queries and keys beyond the range of a bf16 split.
template <typename T>
void CheckMagnitudes() {
  AttentionShape shape;
  shape.query_len = 40, shape.key_len = 200, shape.head_dim = 48;
  for (const double size : {1e-30, 1e-4, 1e4, 1e30, 2e38}) {
    if (std::abs(std::log10(size)) > std::log10(MaxFinite<T>())) continue;
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
TEST_P(AttentionNumericsTest, Magnitudes) {
  CheckMagnitudes<Float16>();
  CheckMagnitudes<BFloat16>();
  CheckMagnitudes<float>();
  CheckMagnitudes<double>();
}

struct Errors {
  double absolute = 0, relative = 0;  // relative to the max value of the column
};

Errors ErrorsOf(const AttentionCase<float>& test) {
  test.Run();
  const std::vector<double> expected = reference::Attention(test.args).output;
  const std::vector<float> got = test.output.Values();
  std::vector<double> column_max(static_cast<std::size_t>(test.shape.value_dim));
  std::size_t n = 0;
  test.value.ForEach([&](float& value) {
    double& max = column_max[n++ % column_max.size()];
    max = std::max(max, static_cast<double>(std::abs(value)));
  });
  Errors errors;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - expected[i]);
    errors.absolute = std::max(errors.absolute, error);
    errors.relative = std::max(errors.relative, error / column_max[i % column_max.size()]);
  }
  return errors;
}

// `precision` selects the number of bf16 terms on bf16 targets; on other targets it changes no bit.
TEST_P(AttentionNumericsTest, Precision) {
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

  // A split of Float16 has at most two terms, of BFloat16 one.
  shape.query_len = 20, shape.key_len = 300;
  AttentionCase<Float16> float16(shape, 17);
  AttentionCase<BFloat16> bfloat16(shape, 17);
  float16.Run();
  bfloat16.Run();
  const std::vector<Float16> float16_output = float16.output.Values();
  const std::vector<BFloat16> bfloat16_output = bfloat16.output.Values();
  for (const Precision precision : {Precision::kHigh, Precision::kMedium}) {
    float16.args.spec.precision = bfloat16.args.spec.precision = precision;
    float16.CheckWithin(0x1p-7);
    const bool same = precision == Precision::kHigh || !HasBf16Products<Float16>(precision);
    EXPECT_EQ(Identical(float16.output.Values(), float16_output), same);
    bfloat16.Run();
    EXPECT_TRUE(Identical(bfloat16.output.Values(), bfloat16_output));
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

// The error of BF16X6 is no larger than that of FMA. Subnormal terms count as 0.
TEST_P(AttentionNumericsTest, HardInputsOnAmx) {
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

// Equal weights over very many keys: sums stay accurate.
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
TEST_P(AttentionNumericsTest, ManyKeys) {
  for (const std::int64_t queries : {2, 9}) {
    CheckManyKeys<Float16>(queries, 5'000);
    CheckManyKeys<BFloat16>(queries, 5'000);
    CheckManyKeys<float>(queries, queries == 2 ? 50'000 : 20'000);
    CheckManyKeys<double>(queries, queries == 2 ? 50'000 : 20'000);
  }
}

HEADWISE_ON_EVERY_TARGET(AttentionNumericsTest);

}  // namespace
}  // namespace headwise::testing
