// Causal attention, packed sequences and softmax on small arrays, with the public headers of headwise alone.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "headwise/alibi.h"
#include "headwise/attention.h"
#include "headwise/layer_norm.h"
#include "headwise/linear.h"
#include "headwise/rope.h"
#include "headwise/runtime.h"
#include "headwise/softmax.h"
#include "headwise/version.h"

// (1, heads, length, dim), contiguous.
template <typename T>
headwise::View<T, 4> Tensor(T* data, std::int64_t heads, std::int64_t length, std::int64_t dim) {
  return {data, {1, heads, length, dim}, {heads * length * dim, length * dim, dim, 1}};
}

int main() {
  constexpr std::int64_t kHeads = 2, kLength = 5, kDim = 8;
  std::vector<float> input(kHeads * kLength * kDim), output(input.size());
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = std::sin(static_cast<float>(i));

  headwise::AttentionArgs<float> args;
  args.query = args.key = args.value = Tensor<const float>(input.data(), kHeads, kLength, kDim);
  args.output = Tensor(output.data(), kHeads, kLength, kDim);
  args.spec.scale = 1 / std::sqrt(static_cast<double>(kDim));
  args.spec.right = 0;  // causal
  headwise::Attention(args);
  // The first query sees one key, so its output is that key's value.
  for (std::int64_t i = 0; i < kDim; ++i) {
    if (output[i] != input[i]) return std::printf("output %g, expected %g\n", output[i], input[i]), 1;
  }

  // The same tokens as packed sequences of 2 and 3: the first of each sees one key.
  headwise::PackedAttentionArgs<float> packed;
  packed.query = packed.key = packed.value = {input.data(), {kHeads, kLength, kDim}, {kLength * kDim, kDim, 1}};
  packed.output = {output.data(), {kHeads, kLength, kDim}, {kLength * kDim, kDim, 1}};
  packed.spec = args.spec;
  headwise::AttentionVarlen(packed, {{0, 2}, {2, 3}, {0, 2}, {2, 3}, {0, 0}});
  for (std::int64_t token : {0, 2}) {
    const float got = *packed.output.at(1, token, 0), expected = *packed.value.at(1, token, 0);
    if (got != expected) return std::printf("packed output %g, expected %g\n", got, expected), 1;
  }

  const headwise::View<const float, 3> rows{input.data(), {kHeads * kLength, kDim, 1}, {kDim, 1, 1}};
  headwise::Softmax(rows, headwise::View<float, 3>{output.data(), rows.shape, rows.stride});
  float sum = 0;
  for (std::int64_t i = 0; i < kDim; ++i) sum += output[i];
  if (!(std::fabs(sum - 1) < 1e-6f)) return std::printf("sum %g, expected 1\n", sum), 1;

  std::printf("headwise %s (%d.%d.%d), target %s, %d threads\n", HEADWISE_VERSION, HEADWISE_VERSION_MAJOR,
              HEADWISE_VERSION_MINOR, HEADWISE_VERSION_PATCH, headwise::ListTargets().front().c_str(),
              headwise::GetNumThreads());
}
