#include <deque>

#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionVarlenTest : public OnTarget {};

AttentionShape ShapeOf(std::int64_t query_len, std::int64_t key_len, Guard guard = Guard::kAfter) {
  AttentionShape shape;
  shape.guard = guard;
  shape.kv_heads = 2, shape.group = 2, shape.head_dim = 24, shape.value_dim = 40;
  shape.query_len = query_len, shape.key_len = key_len;
  return shape;
}

// Of a few rows and of many, of no queries and of no keys, and with all that a call may have.
template <typename T>
std::deque<AttentionCase<T>> Cases(Guard guard) {
  std::deque<AttentionCase<T>> cases;
  const auto add = [&](const AttentionShape& shape) -> AttentionCase<T>& {
    AttentionCase<T>& test = cases.emplace_back(shape, cases.size());
    test.WantLse();
    return test;
  };
  add(ShapeOf(1, 1, guard));
  add(ShapeOf(1, 2500, guard));
  add(ShapeOf(0, 7, guard));
  add(ShapeOf(3, 1100, guard)).WantWeights();
  add(ShapeOf(150, 300, guard));
  add(ShapeOf(2, 0, guard)).AddSinks();
  add(ShapeOf(90, 0, guard));
  add(ShapeOf(5, 5, guard)).args.spec.right = 0;
  AttentionShape other = ShapeOf(70, 200, guard);
  other.batch = 2, other.kv_heads = 1, other.group = 3, other.head_dim = 65;
  other.order = kSeqFirst, other.pad = 3;
  AttentionCase<T>& everything = add(other);
  everything.WantWeights();
  everything.AddKeep(0.7);
  everything.AddBias(1, 0.1, {false, true, false, true});
  everything.AddSlopes(0.1);
  everything.AddSinks();
  everything.args.spec.softcap = 5, everything.args.spec.left = 150, everything.args.spec.offset = 100;
  add(ShapeOf(0, 0, guard));
  AttentionShape widths = ShapeOf(20, 30, guard);
  widths.value_dim = 0;
  add(widths);
  return cases;
}

template <typename T>
void CheckEachAsAlone(Guard guard) {
  const std::deque<AttentionCase<T>> cases = Cases<T>(guard);
  std::vector<AttentionArgs<T>> calls;
  std::vector<std::vector<T>> outputs, weights;
  std::vector<std::vector<Accumulator<T>>> lse;
  for (const AttentionCase<T>& test : cases) {
    SCOPED_TRACE(::testing::Message() << "call " << calls.size());
    calls.push_back(test.args);
    test.Check();
    outputs.push_back(test.output.Values());
    lse.push_back(test.lse.Values());
    weights.push_back(test.weights.Values());
  }
  for (const int threads : {1, 2, 4}) {
    SetNumThreads(threads);
    for (const AttentionCase<T>& test : cases) {
      test.output.ForEach([](T& element) { element = T{55}; });
      test.lse.ForEach([](Accumulator<T>& element) { element = Accumulator<T>{55}; });
      if (test.args.weights) test.weights.ForEach([](T& element) { element = T{55}; });
    }
    AttentionVarlen(calls);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "call " << i << ", " << threads << " threads");
      EXPECT_TRUE(Identical(cases[i].output.Values(), outputs[i]));
      EXPECT_TRUE(Identical(cases[i].lse.Values(), lse[i]));
      EXPECT_TRUE(Identical(cases[i].weights.Values(), weights[i]));
      EXPECT_TRUE(cases[i].output.PaddingIntact());
    }
  }
}
TEST_P(AttentionVarlenTest, EachAsAlone) {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    CheckEachAsAlone<Float16>(guard);
    CheckEachAsAlone<BFloat16>(guard);
    CheckEachAsAlone<float>(guard);
    CheckEachAsAlone<double>(guard);
  }
}

// One long sequence among short ones, and many of one query.
TEST_P(AttentionVarlenTest, ManyLengths) {
  for (const bool decode : {false, true}) {
    std::deque<AttentionCase<float>> cases;
    std::vector<AttentionArgs<float>> calls;
    for (std::int64_t s = 0; s < 40; ++s) {
      const std::int64_t length = s == 17 ? 700 : 3 * s;
      calls.push_back(cases.emplace_back(ShapeOf(decode ? 1 : length, length), 5).args);
      if (!decode) calls.back().spec.right = 0;
    }
    for (const int threads : {1, 3}) {
      SetNumThreads(threads);
      AttentionVarlen(calls);
      for (std::size_t s = 0; s < calls.size(); ++s) {
        const std::vector<float> together = cases[s].output.Values();
        Attention(calls[s]);
        EXPECT_TRUE(Identical(cases[s].output.Values(), together)) << "sequence " << s << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(AttentionVarlenTest, NoCalls) {
  AttentionVarlen(std::vector<AttentionArgs<float>>{});
  const AttentionCase<float> empty(ShapeOf(0, 0), 1);
  AttentionVarlen(std::vector<AttentionArgs<float>>(3, empty.args));
}

HEADWISE_ON_EVERY_TARGET(AttentionVarlenTest);

}  // namespace
}  // namespace headwise::testing
