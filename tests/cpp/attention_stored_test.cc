#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "attention_case.h"
#include "headwise/attention.h"

namespace headwise::testing {
namespace {

class StoredKeysTest : public OnTarget {};

// Keys and values that float16, bfloat16 and nine bits with a factor of 2 kUnit represent: the results are those of the
// same numbers in float.
constexpr float kUnit = 1.0f / 64;

template <typename K>
K Stored(std::int32_t number) {
  if constexpr (std::is_same_v<K, std::int8_t>) {
    return static_cast<std::int8_t>(number >> 1);
  } else {
    return reference::Nearest<K>(static_cast<double>(number) * kUnit);
  }
}

// Random numbers in `array`, and the same in `stored` and `bits`.
template <typename K>
void Fill(const Tensor<float, 4>& array, const Tensor<K, 4>& stored, const Tensor<std::uint8_t, 4>& bits,
          Random& random) {
  const auto view = array.view();
  bits.ForEach([](std::uint8_t& byte) { byte = 0; });
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      for (std::int64_t j = 0; j < view.shape[2]; ++j) {
        for (std::int64_t i = 0; i < view.shape[3]; ++i) {
          const auto number = static_cast<std::int32_t>(Integer(random, -255, 255));
          *view.at(b, h, j, i) = static_cast<float>(number) * kUnit;
          *stored.view().at(b, h, j, i) = Stored<K>(number);
          *bits.view().at(b, h, j, i / 8) |= static_cast<std::uint8_t>((number & 1) << (i % 8));
        }
        // Bits behind the last column have no meaning.
        if (const std::int64_t end = view.shape[3]; end % 8 != 0) {
          *bits.view().at(b, h, j, end / 8) |= static_cast<std::uint8_t>(0xFF << (end % 8));
        }
      }
    }
  }
}

template <typename K>
void CheckStored(const AttentionShape& shape, std::uint64_t seed) {
  SCOPED_TRACE(::testing::Message() << shape.query_len << " queries, " << shape.key_len << " keys, widths "
                                    << shape.head_dim << ", " << shape.value_dim);
  AttentionCase<float> test(shape, seed);
  test.WantLse();
  if (seed % 2 == 0) test.WantWeights();
  if (seed % 3 == 0) test.AddKeep(0.7);
  if (seed % 4 == 0) test.AddSinks();
  if (seed % 5 == 0) test.AddDropout(0.3);
  if (seed % 7 == 0) test.AddKeyLengths(true);
  if (seed % 2 == 1) test.args.spec.right = 0, test.args.spec.offset = shape.key_len - shape.query_len;
  const Tensor<K, 4> key(test.key.view().shape, shape.guard, shape.order, shape.pad);
  const Tensor<K, 4> value(test.value.view().shape, shape.guard, shape.order, shape.pad);
  const std::int64_t b = shape.batch, h = shape.kv_heads, j = shape.key_len;
  const Tensor<std::uint8_t, 4> key_bits({b, h, j, (shape.head_dim + 7) / 8}, shape.guard);
  const Tensor<std::uint8_t, 4> value_bits({b, h, j, (shape.value_dim + 7) / 8}, shape.guard);
  Fill(test.key, key, key_bits, test.random);
  Fill(test.value, value, value_bits, test.random);
  StoredKeys<K> stored{key.read(), value.read(), {}, {}, {}, {}};
  const Tensor<float, 3> scale({b, h, j}, shape.guard);
  if (std::is_same_v<K, std::int8_t>) {
    scale.ForEach([](float& factor) { factor = 2 * kUnit; });
    stored.key_scale = stored.value_scale = scale.read();
    stored.key_bits = key_bits.read(), stored.value_bits = value_bits.read();
  }
  test.args.stored = stored;
  test.Check();
}

template <typename K>
void CheckAll() {
  std::uint64_t seed = 0;
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t queries : {1, 2, 5, 20}) {
      for (const std::int64_t keys : {1, 31, 300}) {
        for (const std::int64_t width : {1, 16, 33}) {
          AttentionShape shape;
          shape.batch = 1 + static_cast<std::int64_t>(seed % 2), shape.kv_heads = 2;
          shape.group = 1 + static_cast<std::int64_t>(seed % 4);
          shape.query_len = queries, shape.key_len = keys, shape.head_dim = width, shape.value_dim = 70 - width;
          shape.guard = guard, shape.order = seed % 2 ? kSeqFirst : kHeadsFirst;
          shape.pad = static_cast<std::int64_t>(seed % 3);
          CheckStored<K>(shape, ++seed);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}
TEST_P(StoredKeysTest, Float16) { CheckAll<Float16>(); }
TEST_P(StoredKeysTest, BFloat16) { CheckAll<BFloat16>(); }
TEST_P(StoredKeysTest, Int8) { CheckAll<std::int8_t>(); }

TEST_P(StoredKeysTest, BadArguments) {
  AttentionShape shape;
  shape.key_len = 5;
  AttentionCase<float> test(shape, 1);
  const Tensor<std::int8_t, 4> key(test.args.key.shape);
  const Tensor<float, 3> scale({1, 1, 5}), few({1, 1, 4});
  const Tensor<std::uint8_t, 4> bits({1, 1, 5, (shape.head_dim + 7) / 8}), less({1, 1, 5, (shape.head_dim - 1) / 8});
  const StoredKeys<std::int8_t> good{key.read(), key.read(), scale.read(), scale.read(), bits.read(), bits.read()};
  const auto throws = [&](const auto& spoil) {
    StoredKeys<std::int8_t> stored = good;
    spoil(stored);
    test.args.stored = stored;
    EXPECT_THROW(CheckAttention(test.args), std::invalid_argument);
  };
  throws([&](auto& stored) { stored.value_scale = few.read(); });
  throws([&](auto& stored) { stored.value_scale = {}; });
  throws([&](auto& stored) { stored.key_bits = less.read(); });
  throws([&](auto& stored) { stored.value_bits = {}; });
  test.args.stored = good;
  EXPECT_NO_THROW(CheckAttention(test.args));
  test.args.value.shape[3] = 7;
  EXPECT_THROW(CheckAttention(test.args), std::invalid_argument);

  AttentionCase<double> other(shape, 1);
  other.args.stored = good;
  EXPECT_THROW(CheckAttention(other.args), std::invalid_argument);
}

HEADWISE_ON_EVERY_TARGET(StoredKeysTest);

}  // namespace
}  // namespace headwise::testing
