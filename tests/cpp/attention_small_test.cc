// Heads of few queries and few keys (csrc/attention/decode/small-inl.h): the bits of the general kernel for decode,
// which a mask that keeps every key selects.
#include "attention/kernel.h"
#include "attention_case.h"

namespace headwise::testing {
namespace {

class AttentionSmallTest : public OnTarget {};

// Shapes within the limits and just beyond them.
AttentionShape RandomShape(Random& random) {
  AttentionShape shape;
  const bool many = Chance(random, 0.3);  // more heads than a task has
  shape.batch = Integer(random, 1, many ? 40 : 3), shape.kv_heads = Integer(random, 1, many ? 4 : 2);
  shape.group = Integer(random, 1, 3), shape.query_len = Integer(random, 1, kMaxDecodeRows / shape.group);
  shape.key_len = Integer(random, 1, kSmallKeys + 1);
  const std::int64_t width = many ? 20 : kSmallWidth + 1;
  shape.head_dim = Integer(random, 1, width), shape.value_dim = Integer(random, 1, width);
  shape.guard = Chance(random, 0.5) ? Guard::kAfter : Guard::kBefore;
  shape.order = Chance(random, 0.5) ? kHeadsFirst : kSeqFirst;
  shape.pad = Integer(random, 0, 3);
  return shape;
}

template <typename T>
void CheckSameBits(AttentionCase<T>& test) {
  test.Run();
  const auto output = test.output.Values();
  const auto lse = test.lse.Values();
  test.AddKeep(1);
  test.Run();
  EXPECT_TRUE(Identical(output, test.output.Values()));
  EXPECT_TRUE(Identical(lse, test.lse.Values()));
  test.args.spec.keep.clear();
}

template <typename T>
void CheckRandomShapes(std::uint64_t count) {
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    AttentionCase<T> test(RandomShape(random), seed);
    if (Chance(random, 0.5)) test.args.spec.right = Integer(random, 0, 3);
    if (Chance(random, 0.3)) test.args.spec.left = Integer(random, 0, 3);
    if (Chance(random, 0.3)) test.args.spec.offset = Integer(random, -4, 12);
    if (Chance(random, 0.7)) test.WantLse();
    test.Check();
    CheckSameBits(test);
    test.Poison();
    test.Check();
    CheckSameBits(test);
    for (const double odd : {kNaN, kInf, -kInf, 1e38}) {  // 1e38: the sums of some values overflow
      for (const Tensor<T, 4>* tensor : {&test.query, &test.key, &test.value}) {
        tensor->ForEach([&](T& element) {
          if (Chance(random, 0.01)) element = reference::Nearest<T>(odd);
        });
      }
      CheckSameBits(test);
    }
  }
}
TEST_P(AttentionSmallTest, BitsOfTheGeneralKernelFloat16) { CheckRandomShapes<Float16>(60); }
TEST_P(AttentionSmallTest, BitsOfTheGeneralKernelBFloat16) { CheckRandomShapes<BFloat16>(60); }
TEST_P(AttentionSmallTest, BitsOfTheGeneralKernelFloat) { CheckRandomShapes<float>(150); }
TEST_P(AttentionSmallTest, BitsOfTheGeneralKernelDouble) { CheckRandomShapes<double>(100); }

TEST_P(AttentionSmallTest, SameBitsForAnyThreadCount) {
  AttentionShape shape;
  shape.batch = 2000, shape.query_len = 2, shape.key_len = 3;
  AttentionCase<float> test(shape, 1);
  SetNumThreads(1);
  test.Check();
  const auto output = test.output.Values();
  SetNumThreads(3);
  test.Check();
  EXPECT_TRUE(Identical(output, test.output.Values()));
}

HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(AttentionSmallTest);

}  // namespace
}  // namespace headwise::testing
