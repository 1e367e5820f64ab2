#include "matmul/bf16_policy.h"

#include "testing/hooks.h"

namespace headwise {
namespace {

// Columns of a product, and depth, in one pair of tiles (bf16_split-inl.h).
constexpr std::int64_t kChunk = 32;

// A depth is padded to a multiple of kChunk: at least two thirds must be used.
bool FillsChunks(std::int64_t depth) {
  const std::int64_t padded = (depth + kChunk - 1) / kChunk * kChunk;
  return depth >= 24 && 3 * depth >= 2 * padded;
}

}  // namespace

bool LinearBf16Pays(int terms, std::int64_t rows, std::int64_t depth, std::int64_t columns) {
  // With no depth there is nothing to multiply, and the bf16 kernels would leave the output unwritten.
  if (testing::Bf16ForAnyShape()) return depth > 0;
  const std::int64_t min_rows = terms == 1 ? kMaxBf16GemvRows + 1 : kChunk;
  const std::int64_t min_side = terms == 3 ? 4 * kChunk : 2 * kChunk;
  return rows >= min_rows && depth >= min_side && columns >= min_side;
}

bool AttentionBf16Pays(int terms, std::int64_t rows, std::int64_t keys, std::int64_t head_dim, std::int64_t value_dim) {
  if (testing::Bf16ForAnyShape()) return true;
  const std::int64_t min_side = terms == 1 ? 32 : terms == 2 ? 64 : 128;
  return rows >= min_side && keys >= min_side && FillsChunks(head_dim) && FillsChunks(value_dim);
}

}  // namespace headwise
