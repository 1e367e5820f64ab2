// Which matmul backend computes a call: a matter of target, type, precision and shape.
#include "attention/kernel.h"

#include <type_traits>

#include "base/targets.h"

namespace headwise {
namespace {

// Parts of bfloat16 that weights and values go by, at most.
template <typename T>
int PartsOf(Precision precision) {
  if (precision == Precision::kMedium || std::is_same_v<T, BFloat16>) return 1;
  return precision == Precision::kHigh || std::is_same_v<T, Float16> ? 2 : 3;
}

// Whether products of so many parts are faster than multiply-adds, as measured: the more parts, the more rows and keys
// it takes, and rows of few features fill no chunk of the depth. A matter of shapes, so that a call's bits are always
// the same.
template <typename T>
bool TilesPay(const AttentionArgs<T>& args, int parts) {
  if (Bf16ForAnyShape()) return true;
  const std::int64_t least = parts == 1 ? 32 : parts == 2 ? 64 : 128;
  const std::int64_t rows = args.query.shape[1] / args.key.shape[1] * args.query.shape[2];
  const auto fills = [](std::int64_t depth) { return depth >= 24 && 3 * depth >= 2 * ((depth + 31) / 32 * 32); };
  return rows >= least && args.key.shape[2] >= least && fills(args.query.shape[3]) && fills(args.value.shape[3]);
}

}  // namespace

template <typename T>
const AttentionKernel<T>& GetAttentionKernel(const AttentionArgs<T>& args) {
  if constexpr (!std::is_same_v<T, double>) {
    const MatmulBackend backend = ChosenMatmulBackend();
    const int parts = PartsOf<T>(args.spec.precision);
    if (backend == MatmulBackend::kAmx && TilesPay(args, parts)) return *AmxAttentionKernel<T>();
    // Of more parts, three products or six take longer there than one of float32.
    if constexpr (!std::is_same_v<T, Float16>) {
      if (backend == MatmulBackend::kBf16Dot && parts == 1 && TilesPay(args, parts)) return *DotAttentionKernel<T>();
    }
  }
  return ChosenAttentionKernels().Of<T>();
}
template const AttentionKernel<Float16>& GetAttentionKernel(const AttentionArgs<Float16>&);
template const AttentionKernel<BFloat16>& GetAttentionKernel(const AttentionArgs<BFloat16>&);
template const AttentionKernel<float>& GetAttentionKernel(const AttentionArgs<float>&);
template const AttentionKernel<double>& GetAttentionKernel(const AttentionArgs<double>&);

}  // namespace headwise
