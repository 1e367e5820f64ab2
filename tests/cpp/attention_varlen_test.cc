#include <algorithm>
#include <deque>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionVarlenTest : public OnTarget {};

using Vector = std::vector<std::int64_t>;

AttentionShape ShapeOf(std::int64_t query_len, std::int64_t key_len, Guard guard = Guard::kAfter) {
  AttentionShape shape;
  shape.guard = guard;
  shape.kv_heads = 2, shape.group = 2, shape.head_dim = 24, shape.value_dim = 40;
  shape.query_len = query_len, shape.key_len = key_len;
  return shape;
}

// Calls of few and of many rows, of no queries and of no keys, and with every option.
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
  everything.AddRelativeBias(1, 0.1, 40, {true, true, true});
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

// An array without elements may have any strides.
TEST(AttentionArgumentsTest, StridesOfEmptyArraysAreIgnored) {
  AttentionCase<float> test(ShapeOf(0, 7), 1);
  test.args.query.stride = test.args.output.stride = {0, 0, 0, 0};
  Attention(test.args);
}

TEST_P(AttentionVarlenTest, NoCalls) {
  AttentionVarlen(std::vector<AttentionArgs<float>>{});
  const AttentionCase<float> empty(ShapeOf(0, 0), 1);
  AttentionVarlen(std::vector<AttentionArgs<float>>(3, empty.args));
}

// Sequences with shared keys, without queries or keys, and rows that belong to no sequence.
template <typename T>
void CheckPackedSequences() {
  const std::int64_t heads = 4, kv_heads = 2, queries = 60, keys = 90, head_dim = 24, value_dim = 40;
  const Tensor<T, 3> query({heads, queries, head_dim}), key({kv_heads, keys, head_dim}),
      value({kv_heads, keys, value_dim}), output({heads, queries, value_dim});
  const Tensor<Accumulator<T>, 2> lse({heads, queries});
  Random random(31);
  FillNormal(query, random);
  FillNormal(key, random);
  FillNormal(value, random);
  const T untouched = reference::Nearest<T>(7);
  output.ForEach([&](T& element) { element = untouched; });
  PackedAttentionArgs<T> args;
  args.query = query.read(), args.key = key.read(), args.value = value.read();
  args.output = output.view(), args.lse = lse.view();
  args.spec.scale = 0.3, args.spec.right = 0, args.spec.softcap = 5;
  const PackedSequences sequences{{2, 5, 5, 40}, {3, 0, 30, 20}, {0, 9, 10, 50}, {20, 3, 30, 0}, {17, 0, -4, 0}};
  AttentionVarlen(args, sequences);

  std::vector<bool> owned(static_cast<std::size_t>(queries));
  for (std::size_t s = 0; s < sequences.offsets.size(); ++s) {
    const std::int64_t first = sequences.query_starts[s], count = sequences.query_lengths[s];
    const std::int64_t key_first = sequences.key_starts[s], key_count = sequences.key_lengths[s];
    std::fill_n(owned.begin() + first, count, true);
    const Tensor<T, 4> alone({1, heads, count, value_dim});
    const auto with_batch = [](const auto& view, std::int64_t begin, std::int64_t length) {
      return View<std::remove_reference_t<decltype(*view.data)>, 4>{
          view.at(0, begin),
          {1, view.shape[0], length, view.shape[2]},
          {0, view.stride[0], view.stride[1], view.stride[2]}};
    };
    AttentionArgs<T> call;
    call.query = with_batch(args.query, first, count);
    call.key = with_batch(args.key, key_first, key_count);
    call.value = with_batch(args.value, key_first, key_count);
    call.output = alone.view();
    call.spec = args.spec;
    call.spec.offset = sequences.offsets[s];
    Attention(call);
    for (std::int64_t h = 0; h < heads; ++h) {
      const T* packed = output.read().at(h, first);
      const T* expected = alone.read().at(0, h);
      EXPECT_TRUE(Identical(std::vector<T>(packed, packed + count * value_dim),
                            std::vector<T>(expected, expected + count * value_dim)))
          << "sequence " << s << ", head " << h;
    }
  }
  for (std::int64_t i = 0; i < queries; ++i) {
    if (owned[static_cast<std::size_t>(i)]) continue;
    for (std::int64_t d = 0; d < value_dim; ++d) {
      EXPECT_EQ(reference::ToDouble(*output.read().at(3, i, d)), 7) << "row " << i;
    }
  }
}
TEST_P(AttentionVarlenTest, PackedSequencesAsAlone) {
  CheckPackedSequences<Float16>();
  CheckPackedSequences<BFloat16>();
  CheckPackedSequences<float>();
  CheckPackedSequences<double>();
}

HEADWISE_ON_EVERY_TARGET(AttentionVarlenTest);

// Runs `call` and expects std::invalid_argument with a message that begins with `name`.
template <class Call>
void ExpectInvalid(const std::string& name, const Call& call) {
  try {
    call();
    ADD_FAILURE() << "expected an error of " << name;
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).rfind(name + ": ", 0), 0U) << error.what();
  }
}

TEST(AttentionArgumentsTest, WrongPackedSequencesThrow) {
  const Tensor<float, 3> query({4, 10, 8}), key({2, 10, 8}), value({2, 10, 8}), output({4, 10, 8});
  PackedAttentionArgs<float> args;
  args.query = query.read(), args.key = key.read(), args.value = value.read(), args.output = output.view();
  const PackedSequences good{{0, 5}, {5, 5}, {0, 5}, {5, 5}, {0, 0}};
  AttentionVarlen(args, good);
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  const auto expect_range = [&](Vector PackedSequences::*member, const std::string& name) {
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{11}, std::int64_t{1} << 62, kMax}) {
      PackedSequences bad = good;
      (bad.*member)[1] = wrong;
      ExpectInvalid(name, [&] { AttentionVarlen(args, bad); });
    }
  };
  expect_range(&PackedSequences::query_starts, "query_starts, query_lengths");
  expect_range(&PackedSequences::query_lengths, "query_starts, query_lengths");
  expect_range(&PackedSequences::key_starts, "key_starts, key_lengths");
  expect_range(&PackedSequences::key_lengths, "key_starts, key_lengths");
  const auto expect_count = [&](Vector PackedSequences::*member, const std::string& name) {
    PackedSequences bad = good;
    (bad.*member).pop_back();
    ExpectInvalid(name, [&] { AttentionVarlen(args, bad); });
  };
  expect_count(&PackedSequences::query_lengths, "query_lengths");
  expect_count(&PackedSequences::key_starts, "key_starts");
  expect_count(&PackedSequences::key_lengths, "key_lengths");
  expect_count(&PackedSequences::offsets, "offsets");
  args.spec.key_lengths = {10}, args.spec.offsets = {0};
  ExpectInvalid("spec", [&] { AttentionVarlen(args, good); });
  args.spec.key_lengths.clear(), args.spec.offsets.clear();
  PackedSequences reversed{{5, 0, 3}, {5, 5, 0}, {0, 5, 0}, {5, 5, 10}, {0, 0, 0}};  // an empty one may lie anywhere
  AttentionVarlen(args, reversed);
  reversed.query_starts[0] = 4;
  ExpectInvalid("query_starts, query_lengths", [&] { AttentionVarlen(args, reversed); });
  PackedSequences far = good;
  far.offsets[1] = kMax;
  ExpectInvalid("offset", [&] { AttentionVarlen(args, far); });
  args.spec.dropout_keep = {reinterpret_cast<const std::uint8_t*>(query.data()), {1, 4, 10, 10}, {0, 0, 0, 0}};
  ExpectInvalid("spec", [&] { AttentionVarlen(args, good); });
}

TEST(AttentionArgumentsTest, WrongShapesAndStridesThrow) {
  AttentionShape shape = ShapeOf(3, 5);
  AttentionCase<BFloat16> test(shape, 1);
  test.WantLse();
  test.WantWeights();
  test.AddKeep(0.5);
  test.AddBias(1, 0);
  test.AddStoredBias(1, 0);
  test.AddDropout(0.1);
  CheckAttention(test.args);
  using Args = AttentionArgs<BFloat16>;
  const auto expect = [&](const std::string& name, const auto& spoil) {
    Args bad = test.args;
    spoil(bad);
    ExpectInvalid(name, [&] { Attention(bad); });
    ExpectInvalid(name, [&] { AttentionVarlen(std::vector<Args>{test.args, bad}); });
  };
  expect("key_lengths", [](Args& bad) { bad.spec.key_lengths = {1, 1}, bad.spec.offsets = {0}; });
  expect("key_lengths", [](Args& bad) { bad.spec.offsets = {0}; });
  expect("key_lengths", [](Args& bad) { bad.spec.key_lengths = {-1}, bad.spec.offsets = {0}; });
  expect("key_lengths", [](Args& bad) { bad.spec.key_lengths = {6}, bad.spec.offsets = {0}; });
  expect("offsets", [](Args& bad) { bad.spec.key_lengths = {1}; });
  expect("query", [](Args& bad) { bad.query.data = nullptr; });
  expect("query", [](Args& bad) { bad.query.stride[3] = 2; });
  expect("key", [](Args& bad) { bad.key.shape[3] = 23; });
  expect("key", [](Args& bad) { bad.key.shape[0] = 2; });
  expect("key", [](Args& bad) { bad.key.shape[1] = bad.value.shape[1] = 3; });
  expect("key", [](Args& bad) { bad.key.shape[1] = bad.value.shape[1] = 0; });
  expect("value", [](Args& bad) { bad.value.shape[2] = 4; });
  expect("output", [](Args& bad) { bad.output.shape[3] = 39; });
  expect("output", [](Args& bad) { bad.output.stride[3] = 2; });
  expect("weights", [](Args& bad) { bad.weights.shape[3] = 6; });
  expect("lse", [](Args& bad) { bad.lse.shape[2] = 2; });
  expect("keep", [](Args& bad) { bad.spec.keep[0].shape[3] = 1; });
  expect("keep", [](Args& bad) { bad.spec.keep[0].stride[3] = 2; });
  expect("bias", [](Args& bad) { std::get<0>(bad.spec.bias[0]).shape[2] = 1; });
  expect("bias", [](Args& bad) { std::get<1>(bad.spec.bias[1]).stride[3] = -1; });
  expect("dropout_keep", [](Args& bad) { bad.spec.dropout_keep.shape[1] = 1; });
  for (std::int64_t AttentionSpec<BFloat16>::*position :
       {&AttentionSpec<BFloat16>::left, &AttentionSpec<BFloat16>::right, &AttentionSpec<BFloat16>::offset}) {
    const std::string name = position == &AttentionSpec<BFloat16>::left    ? "left"
                             : position == &AttentionSpec<BFloat16>::right ? "right"
                                                                           : "offset";
    for (const std::int64_t far :
         {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
      expect(name, [&](Args& bad) { bad.spec.*position = far; });
    }
  }
  expect("softcap", [](Args& bad) { bad.spec.softcap = -1; });
  expect("softcap", [](Args& bad) { bad.spec.softcap = kNaN; });
  expect("softcap", [](Args& bad) { bad.spec.softcap = 1e31; });
}

}  // namespace
}  // namespace headwise::testing
