// The accuracy of float32 matrix products.
#pragma once

namespace headwise {

// The levels of the bf16 split: each number is the sum of up to three bfloat16 terms, whose products are summed in
// float32. They take effect on the target avx512_amx and, for kMedium of float, on avx512_bf16, and there only for
// shapes at which bf16 products are faster. On all other targets products are computed in float32 at every level.
// A bfloat16 is one term at every level; for a float16, see the operation.
enum class Precision {
  kHighest,  // BF16X6, three terms, six products: at least float32 accuracy
  kHigh,     // BF16X3, two terms, three products: relative error of a product about 2^-16
  kMedium,   // BF16, one term, one product: about 2^-8
};

}  // namespace headwise
