// Which matmul backend computes a call: a matter of target, type, precision and shape.
#include "attention/kernel.h"

#include <cstdint>
#include <type_traits>
#include <variant>

#include "base/targets.h"
#include "matmul/bf16_policy.h"

namespace headwise {

template <typename T>
const AttentionKernel<T>& GetAttentionKernel(const AttentionArgs<T>& args) {
  if constexpr (!std::is_same_v<T, double>) {
    const MatmulBackend backend = ChosenMatmulBackend();
    const int terms = AttentionTerms<T>(backend, args.spec.precision);
    const std::int64_t rows = args.query.shape[1] / args.key.shape[1] * args.query.shape[2];
    const bool own = std::holds_alternative<std::monostate>(args.stored);  // no split of keys of another type
    if (own && terms > 0 &&
        AttentionBf16Pays(terms, rows, args.key.shape[2], args.query.shape[3], args.value.shape[3])) {
      if (backend == MatmulBackend::kAmx) return *AmxAttentionKernel<T>();
      if constexpr (!std::is_same_v<T, Float16>) return *DotAttentionKernel<T>();
    }
  }
  return ChosenAttentionKernels().Of<T>();
}
template const AttentionKernel<Float16>& GetAttentionKernel(const AttentionArgs<Float16>&);
template const AttentionKernel<BFloat16>& GetAttentionKernel(const AttentionArgs<BFloat16>&);
template const AttentionKernel<float>& GetAttentionKernel(const AttentionArgs<float>&);
template const AttentionKernel<double>& GetAttentionKernel(const AttentionArgs<double>&);

}  // namespace headwise
