// How exactly products of float32 numbers are computed where the processor offers a choice.
#pragma once

namespace headwise {

// On the target avx512_amx, and for float kMedium on avx512_bf16, for shapes that are faster so; everywhere else
// products are of float32 at every level. A bfloat16 is one part at every level; what a float16 is, each operation
// says.
enum class Precision {
  kHighest,  // at least float32 accuracy: three bfloat16 parts to a number, six products
  kHigh,     // two parts, three products: errors of about 2^-16 of a product
  kMedium,   // one bfloat16 product: about 2^-8
};

}  // namespace headwise
