#include "headwise/attention_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionStatisticsTest : public OnTarget {};

struct Options {
  std::int64_t k = 3, query_size = 16, key_size = 50;
};

template <typename T>
struct Results {
  Results(const AttentionShape& shape, const Options& options)
      : query_blocks((shape.query_len + options.query_size - 1) / options.query_size),
        key_blocks((shape.key_len + options.key_size - 1) / options.key_size),
        key_mass({shape.batch, Heads(shape), shape.key_len}, shape.guard),
        entropy({shape.batch, Heads(shape), shape.query_len}, shape.guard),
        max_weight({shape.batch, Heads(shape), shape.query_len}, shape.guard),
        top_weights({shape.batch, Heads(shape), shape.query_len, options.k}, shape.guard),
        top_keys({shape.batch, Heads(shape), shape.query_len, options.k}, shape.guard),
        block_mass({shape.batch, Heads(shape), query_blocks, key_blocks}, shape.guard) {
    all.key_mass = key_mass.view(), all.entropy = entropy.view(), all.max_weight = max_weight.view();
    all.top_weights = top_weights.view(), all.top_keys = top_keys.view(), all.block_mass = block_mass.view();
    all.query_size = options.query_size, all.key_size = options.key_size;
  }

  static std::int64_t Heads(const AttentionShape& shape) { return shape.kv_heads * shape.group; }

  std::int64_t query_blocks, key_blocks;
  Tensor<T, 3> key_mass, entropy, max_weight;
  Tensor<T, 4> top_weights;
  Tensor<std::int64_t, 4> top_keys;
  Tensor<T, 4> block_mass;
  WeightStatistics<T> all;
};

// The statistics of the reference's weights, and the same bits for 1 and 3 threads.
template <typename T>
void Check(const AttentionCase<T>& test, const Options& options, double rounding = 0) {
  const AttentionShape& shape = test.shape;
  const std::int64_t heads = Results<T>::Heads(shape), queries = shape.query_len, keys = shape.key_len;
  const Results<T> found(shape, options), again(shape, options);
  SetNumThreads(1);
  AttentionStatistics(test.args, found.all);
  const std::vector<T> lse = test.lse.Values();
  SetNumThreads(3);
  AttentionStatistics(test.args, again.all);
  EXPECT_TRUE(Identical(found.key_mass.Values(), again.key_mass.Values()));
  EXPECT_TRUE(Identical(found.entropy.Values(), again.entropy.Values()));
  EXPECT_TRUE(Identical(found.max_weight.Values(), again.max_weight.Values()));
  EXPECT_TRUE(Identical(found.top_weights.Values(), again.top_weights.Values()));
  EXPECT_EQ(found.top_keys.Values(), again.top_keys.Values());
  EXPECT_TRUE(Identical(found.block_mass.Values(), again.block_mass.Values()));

  const reference::AttentionResult expected = reference::Attention(test.args);
  std::vector<double> key_mass, entropy, max_weight, top_weights, block_mass;
  const auto weight = [&](std::int64_t row, std::int64_t key) {
    return expected.weights[static_cast<std::size_t>(row * keys + key)];
  };
  for (std::int64_t head = 0; head < shape.batch * heads; ++head) {
    for (std::int64_t j = 0; j < keys; ++j) {
      double sum = 0;
      for (std::int64_t i = 0; i < queries; ++i) sum += weight(head * queries + i, j);
      key_mass.push_back(sum);
    }
    std::vector<double> blocks(static_cast<std::size_t>(found.query_blocks * found.key_blocks));
    for (std::int64_t i = 0; i < queries; ++i) {
      std::vector<double> row;
      double sum = 0;
      for (std::int64_t j = 0; j < keys; ++j) {
        const double p = weight(head * queries + i, j);
        row.push_back(p);
        if (p > 0) sum -= p * std::log(p);
        blocks[static_cast<std::size_t>(i / options.query_size * found.key_blocks + j / options.key_size)] += p;
      }
      std::sort(row.rbegin(), row.rend());
      entropy.push_back(sum), max_weight.push_back(row[0]);
      top_weights.insert(top_weights.end(), row.begin(), row.begin() + options.k);
    }
    block_mass.insert(block_mass.end(), blocks.begin(), blocks.end());
  }
  const double tolerance = test.Tolerance() + rounding;
  EXPECT_EQ(Difference(found.key_mass.Values(), key_mass, tolerance, tolerance), "");
  EXPECT_EQ(Difference(found.entropy.Values(), entropy, 10 * tolerance, 10 * tolerance), "");
  EXPECT_EQ(Difference(found.max_weight.Values(), max_weight, tolerance, tolerance), "");
  EXPECT_EQ(Difference(found.top_weights.Values(), top_weights, tolerance, tolerance), "");
  EXPECT_EQ(Difference(found.block_mass.Values(), block_mass, tolerance, tolerance), "");
  EXPECT_EQ(Difference(lse, expected.lse, 10 * tolerance, tolerance), "");
  const std::vector<std::int64_t> top_keys = found.top_keys.Values();
  const std::vector<T> weights_of_keys = found.top_weights.Values();
  for (std::size_t n = 0; n < top_keys.size(); ++n) {
    const auto row = static_cast<std::int64_t>(n) / options.k;
    ASSERT_TRUE(top_keys[n] >= 0 && top_keys[n] < keys);
    ASSERT_NEAR(weight(row, top_keys[n]), static_cast<double>(weights_of_keys[n]), tolerance);
  }
}

template <typename T>
void CheckAll() {
  std::uint64_t seed = 0;
  for (const std::int64_t queries : {1, 9, 70, 200}) {
    for (const std::int64_t keys : {1, 40, 256, 700}) {
      AttentionShape shape;
      shape.batch = 1 + static_cast<std::int64_t>(seed % 2), shape.kv_heads = 2;
      shape.group = 1 + static_cast<std::int64_t>(seed % 3), shape.value_dim = 0;
      shape.query_len = queries, shape.key_len = keys, shape.head_dim = 24;
      shape.guard = seed % 2 ? Guard::kBefore : Guard::kAfter;
      shape.order = seed % 4 < 2 ? kSeqFirst : kHeadsFirst;
      ++seed;
      SCOPED_TRACE(::testing::Message() << queries << " queries, " << keys << " keys, " << shape.group << " heads");
      AttentionCase<T> test(shape, seed);
      test.WantLse();
      if (seed % 3 == 0) test.AddKeep(0.7);
      if (seed % 4 == 0) test.AddSinks();
      if (seed % 5 == 0) test.AddKeyLengths(true);
      if (seed % 2 == 0) test.args.spec.right = 0, test.args.spec.offset = keys - queries;
      if (seed % 7 == 0) test.args.spec.left = 100;
      const Options options{std::min<std::int64_t>(keys, seed % 2 ? 3 : 20), seed % 2 ? 16 : 100, seed % 3 ? 50 : 7};
      Check(test, options);
      if (test.Poison() > 0) Check(test, options);
      if (::testing::Test::HasFailure()) return;
    }
  }
}
TEST_P(AttentionStatisticsTest, Float) { CheckAll<float>(); }
TEST_P(AttentionStatisticsTest, Double) { CheckAll<double>(); }

// Weights of key blocks that were stored with other maxima.
TEST_P(AttentionStatisticsTest, GrowingScores) {
  AttentionShape shape;
  shape.query_len = 60, shape.key_len = 900, shape.value_dim = 0;
  for (const double step : {3.0, -3.0, 100.0}) {
    AttentionCase<float> test(shape, 1);
    Grow(test, step);
    test.WantLse();
    Check(test, Options());
  }
}

TEST_P(AttentionStatisticsTest, LowerPrecision) {
  AttentionShape shape;
  shape.query_len = 100, shape.key_len = 500, shape.group = 2, shape.value_dim = 0;
  for (const auto& [precision, rounding] : {std::pair{Precision::kHigh, 1e-4}, {Precision::kMedium, 2e-2}}) {
    AttentionCase<float> test(shape, 1);
    test.WantLse();
    test.args.spec.precision = precision;
    Check(test, Options(), rounding);
  }
}

TEST(AttentionStatisticsArgumentsTest, AreChecked) {
  AttentionShape shape;
  shape.query_len = 4, shape.key_len = 5, shape.value_dim = 0;
  AttentionCase<float> test(shape, 1);
  const Results<float> results(shape, Options());
  const auto refused = [&](const WeightStatistics<float>& statistics) {
    EXPECT_THROW(AttentionStatistics(test.args, statistics), std::invalid_argument);
  };
  WeightStatistics<float> wrong = results.all;
  wrong.key_mass.shape[2] = 4, refused(wrong);
  wrong = results.all, wrong.top_keys = {}, refused(wrong);
  wrong = results.all, wrong.query_size = 0, refused(wrong);
  wrong = results.all, wrong.key_size = INT64_MAX, refused(wrong);
  wrong = results.all, wrong.top_weights.shape[3] = wrong.top_keys.shape[3] = 0, refused(wrong);
  const Results<float> blocks(shape, {3, 16, 2});
  EXPECT_NO_THROW(AttentionStatistics(test.args, blocks.all));
  wrong = blocks.all, wrong.block_mass.stride[3] = 2, refused(wrong);
  test.args.statistics = &results.all;
  EXPECT_THROW(Attention(test.args), std::invalid_argument);
}

HEADWISE_ON_EVERY_TARGET(AttentionStatisticsTest);

}  // namespace
}  // namespace headwise::testing
