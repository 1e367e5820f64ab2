#include "headwise/attention_backward.h"

#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include "attention_backward_case.h"
#include "headwise/attention.h"

namespace headwise::testing {
namespace {

class AttentionBackwardTest : public OnTarget {};

// Every option at random. Sizes are mostly small, so that tails, blocks and their combinations come up often.
template <typename T>
BackwardCase<T> RandomCase(std::uint64_t seed) {
  Random random(seed);
  const auto size = [&](std::int64_t small, std::int64_t large) {
    return Chance(random, 0.85) ? Integer(random, 1, small) : Integer(random, 1, large);
  };
  AttentionShape shape;
  shape.batch = Integer(random, 1, 2);
  shape.kv_heads = Integer(random, 1, 2);
  shape.group = Chance(random, 0.5) ? 1 : Integer(random, 2, 3);
  shape.query_len = size(20, 210);
  shape.key_len = size(50, 210);
  shape.head_dim = size(30, 80);
  shape.value_dim = Chance(random, 0.5) ? shape.head_dim : size(30, 80);
  shape.guard = Chance(random, 0.7) ? Guard::kAfter : Guard::kBefore;
  shape.order = Chance(random, 0.5) ? kHeadsFirst : kSeqFirst;
  shape.pad = Chance(random, 0.5) ? 0 : 3;

  BackwardCase<T> test(shape, seed);
  const auto full = [&] {
    return std::array<bool, 4>{Chance(random, 0.6), Chance(random, 0.6), Chance(random, 0.6), Chance(random, 0.8)};
  };
  if (Chance(random, 0.3)) test.AddLseGradients();
  if (Chance(random, 0.2)) test.AddWeightGradients();
  for (std::int64_t masks = Chance(random, 0.4) ? Integer(random, 1, 2) : 0; masks > 0; --masks) {
    test.AddKeep(Chance(random, 0.3) ? 0.1 : 0.7, full());
  }
  for (std::int64_t biases = Chance(random, 0.4) ? Integer(random, 1, 2) : 0; biases > 0; --biases) {
    test.AddBias(1, Chance(random, 0.5) ? 0 : 0.3, full());
  }
  if (kIs16Bit<T> && Chance(random, 0.3)) test.AddStoredBias(1, Chance(random, 0.5) ? 0 : 0.3, full());
  if (Chance(random, 0.3)) {
    test.AddDropout(0.3, Chance(random, 0.8) ? std::array<bool, 4>{true, true, true, true} : full());
  }
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
    test.args.spec.offset = Chance(random, 0.6) ? shape.key_len - shape.query_len : Integer(random, -80, 300);
  }
  if (Chance(random, 0.1)) test.args.spec.scale = Chance(random, 0.5) ? 0 : -0.3;
  if (Chance(random, 0.2)) test.AddKeyLengths(Chance(random, 0.5));
  if (Chance(random, 0.7)) test.WantParameters();
  if (Chance(random, 0.1)) test.gradients.d_query = {};
  if (Chance(random, 0.1)) test.gradients.d_key = {};
  if (Chance(random, 0.1)) test.gradients.d_value = {};
  return test;
}

template <typename T>
void CheckRandom(std::uint64_t cases) {
  int poisoned = 0;
  for (std::uint64_t seed = 0; seed < cases && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    BackwardCase<T> test = RandomCase<T>(seed);
    poisoned += test.Poison();
    test.CheckGradients();
  }
  EXPECT_GT(poisoned, 0);
}
TEST_P(AttentionBackwardTest, AllKeywordsAtRandomFloat16) { CheckRandom<Float16>(60); }
TEST_P(AttentionBackwardTest, AllKeywordsAtRandomBFloat16) { CheckRandom<BFloat16>(60); }
TEST_P(AttentionBackwardTest, AllKeywordsAtRandomFloat) { CheckRandom<float>(150); }
TEST_P(AttentionBackwardTest, AllKeywordsAtRandomDouble) { CheckRandom<double>(100); }

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t size : Sizes()) {
      SCOPED_TRACE(size);
      AttentionShape shape;
      shape.guard = guard;
      shape.query_len = 3, shape.key_len = 21, shape.head_dim = size, shape.value_dim = 258 - size;
      BackwardCase<T>(shape, 1).CheckGradients();
      shape.query_len = size, shape.key_len = 19, shape.group = 2, shape.head_dim = shape.value_dim = 8;
      BackwardCase<T>(shape, 2).CheckGradients();
      shape.query_len = 5, shape.key_len = size;
      BackwardCase<T> causal(shape, 3);
      causal.CheckGradients();
      causal.args.spec.right = 0, causal.args.spec.offset = size - 5;
      causal.CheckGradients();
    }
  }
}
TEST_P(AttentionBackwardTest, EverySize) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
  CheckSizes<float>();
  CheckSizes<double>();
}

// Several passes and chunks, and blocks that windows cut or skip.
template <typename T>
void CheckLong() {
  for (const bool window : {false, true}) {
    AttentionShape shape;
    shape.query_len = 130, shape.key_len = 1300, shape.head_dim = 24, shape.value_dim = 18, shape.group = 2;
    BackwardCase<T> test(shape, 4);
    test.AddSlopes(0.1);
    test.AddBias(1, 0, {true, true, false, true});
    test.AddBias(1, 0, {true, true, true, false});
    test.AddRelativeBias(1, 0, window ? 90 : 1400, {false, true, window});
    test.WantParameters();
    if (window) test.args.spec.left = 200, test.args.spec.right = 0, test.args.spec.offset = 900;
    EXPECT_EQ(test.Poison() > 0, window);
    test.CheckGradients();
  }
}
TEST_P(AttentionBackwardTest, SeveralChunks) {
  CheckLong<BFloat16>();
  CheckLong<float>();
  CheckLong<double>();
}

// Biases that are summed over each set of axes, in the order of tasks that each needs.
TEST_P(AttentionBackwardTest, EveryBroadcastOfBiases) {
  for (int set = 0; set < 16; ++set) {
    SCOPED_TRACE(set);
    for (const bool one_key : {false, true}) {  // of a padded sequence: a broadcast axis is as long
      AttentionShape shape;
      shape.batch = one_key ? 1 : 5, shape.kv_heads = 3, shape.group = 2, shape.query_len = 30, shape.key_len = 50;
      BackwardCase<float> test(shape, 5);
      if (one_key) test.args.spec.key_lengths = {1}, test.args.spec.offsets = {0};
      test.AddBias(1, 0.1, {(set & 1) != 0, (set & 2) != 0, (set & 4) != 0, (set & 8) != 0});
      test.WantParameters();
      test.CheckGradients();
    }
  }
}

// A query or key that is NaN or infinite reaches the gradients of the pairs that are kept, and no others.
template <typename T>
void CheckNotFinite() {
  for (const double number : {kNaN, kInf}) {
    AttentionShape shape;
    shape.query_len = 150, shape.key_len = 150;
    BackwardCase<T> test(shape, 6);
    test.args.spec.right = 0;
    *test.query.view().at(0, 0, 70, 3) = reference::Nearest<T>(kNaN);
    *test.d_output.view().at(0, 0, 20, 2) = reference::Nearest<T>(number);
    test.RunForward();
    test.RunBackward();
    const auto finite = [&](const Tensor<T, 4>& tensor, std::int64_t row) {
      return std::isfinite(reference::ToDouble(*tensor.view().at(0, 0, row, 0)));
    };
    for (std::int64_t i = 0; i < 150; ++i) {
      SCOPED_TRACE(::testing::Message() << number << ", row " << i);
      EXPECT_EQ(finite(test.d_query, i), i != 70 && i != 20);
      EXPECT_EQ(finite(test.d_key, i), i > 70);
    }
  }
}
TEST_P(AttentionBackwardTest, NotFiniteWhereKept) {
  CheckNotFinite<Float16>();
  CheckNotFinite<float>();
  CheckNotFinite<double>();
}

TEST_P(AttentionBackwardTest, NothingKept) {
  for (const bool sinks : {false, true}) {
    AttentionShape shape;
    shape.query_len = 9, shape.key_len = 37;
    BackwardCase<float> test(shape, 7);
    test.AddKeepWhere([](std::int64_t, std::int64_t i, std::int64_t) { return i > 4; });
    if (sinks) test.AddSinks();
    test.WantParameters();
    for (std::int64_t i = 0; i < 5; ++i) *test.query.view().at(0, 0, i, 1) = static_cast<float>(kNaN);
    test.CheckGradients();
    for (std::int64_t i = 0; i < 5; ++i) EXPECT_EQ(*test.d_query.view().at(0, 0, i, 0), 0);
  }
}

TEST_P(AttentionBackwardTest, EmptyAxes) {
  for (int axis = 0; axis < 5; ++axis) {
    SCOPED_TRACE(axis);
    AttentionShape shape;
    if (axis == 0) shape.batch = 0;
    if (axis == 1) shape.query_len = 0;
    if (axis == 2) shape.key_len = 0;
    if (axis == 3) shape.head_dim = 0;
    if (axis == 4) shape.value_dim = 0;
    BackwardCase<float> test(shape, 8);
    test.args.spec.scale = 1;
    test.AddBias(1, 0, {false, false, false, false});
    test.AddSlopes(1);
    test.AddSinks();
    test.WantParameters();
    test.CheckGradients();
  }
}

TEST_P(AttentionBackwardTest, SameBitsForAnyNumberOfThreads) {
  for (int kind = 0; kind < 4; ++kind) {
    AttentionShape shape;
    shape.batch = kind == 0 ? 1 : 3, shape.query_len = 200, shape.key_len = kind < 2 ? 1100 : 130;
    BackwardCase<float> test(shape, 9);
    test.AddSlopes(0.1);
    test.AddBias(1, 0, {kind != 2, true, kind != 3, true});
    test.AddRelativeBias(1, 0, 100, {kind == 1, true, kind == 3});
    test.AddSinks();
    test.WantParameters();
    test.RunForward();
    SetNumThreads(1);
    test.RunBackward();
    const std::vector<char> serial = test.GradientBits();
    SetNumThreads(4);
    for (int round = 0; round < 3; ++round) {
      test.RunBackward();
      EXPECT_EQ(test.GradientBits(), serial);
    }
  }
}

// Calls of several chunks, of one, and without keys or queries, in one parallel region.
TEST_P(AttentionBackwardTest, ManyCallsHaveTheBitsOfEach) {
  std::deque<BackwardCase<float>> tests;
  std::vector<AttentionBackwardCall<float>> calls;
  std::vector<std::vector<char>> expected;
  for (const std::int64_t keys : {1100, 40, 0, 1300, 7}) {
    AttentionShape shape;
    shape.query_len = keys == 7 ? 0 : 30 + keys / 10, shape.key_len = keys, shape.group = 2;
    BackwardCase<float>& test = tests.emplace_back(shape, 12);
    test.AddSlopes(0.1);
    test.AddBias(1, 0, {true, true, keys == 40, true});
    test.AddRelativeBias(1, 0, 100, {false, true, keys == 40});
    test.AddSinks();
    test.WantParameters();
    test.RunForward();
    test.RunBackward();
    expected.push_back(test.GradientBits());
    calls.push_back({test.args, test.gradients});
  }
  for (const int threads : {1, 3}) {
    for (const BackwardCase<float>& test : tests) FillNormal(test.d_query, tests[0].random);
    SetNumThreads(threads);
    AttentionBackwardVarlen(calls);
    for (std::size_t i = 0; i < tests.size(); ++i) EXPECT_EQ(tests[i].GradientBits(), expected[i]) << i;
  }
}

// The softmax of huge scores is one-hot, and P must be 1 there. Tiles of AMX round scores otherwise than the backward
// pass, which a huge scale would magnify.
TEST_P(AttentionBackwardTest, HugeScores) {
  AttentionShape shape;
  shape.query_len = 20, shape.key_len = 30;
  BackwardCase<float> test(shape, 10);
  const bool tiles = GetTarget() == "avx512_amx";
  test.args.spec.scale = tiles ? 100 : 1e6;
  test.RunForward();
  test.RunBackward();
  for (const float element : test.d_value.Values()) EXPECT_TRUE(std::isfinite(element));
  double sum = 0, expected = 0;
  for (const float element : test.d_value.Values()) sum += static_cast<double>(element);
  for (const float element : test.d_output.Values()) expected += static_cast<double>(element);
  EXPECT_NEAR(sum, expected, tiles ? 2e-2 : 1e-3);
}

TEST(AttentionBackwardArguments, Checked) {
  AttentionShape shape;
  shape.query_len = 4, shape.key_len = 6;
  const auto message = [](const BackwardCase<float>& test) -> std::string {
    try {
      AttentionBackward(test.args, test.gradients);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  BackwardCase<float> test(shape, 11);
  EXPECT_EQ(message(test), "");
  test.args.lse = {};
  EXPECT_EQ(message(test).substr(0, 4), "lse:");
  test.WantLse();
  test.gradients.d_key.shape[2] = 5;
  EXPECT_EQ(message(test), "d_key: shape (1, 1, 5, 8), expected (1, 1, 6, 8)");
  test.gradients.d_key = {};
  test.gradients.d_sinks = test.d_sinks.data();
  EXPECT_EQ(message(test), "d_sinks: wanted, but the spec has no sinks");
  test.gradients.d_sinks = nullptr;
  test.gradients.d_bias.resize(1);
  EXPECT_EQ(message(test), "d_bias: 1 arrays, expected 0");
}

HEADWISE_ON_EVERY_TARGET(AttentionBackwardTest);

}  // namespace
}  // namespace headwise::testing
