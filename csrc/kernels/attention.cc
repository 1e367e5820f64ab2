// Compiled once per target: foreach_target.h includes this file again for each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/attention-inl.h"
#include "kernels/attention.h"
#include "kernels/attention_fma-inl.h"
#include "runtime/amx.h"
#include "runtime/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr AttentionKernel<T> kAttention{&AttentionScratchBytes<FmaProducts<T>>, &FmaAttentionBlock<T>};

HEADWISE_KERNELS(Attention)

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace headwise {

// Whether tiles are faster than multiply-adds, as measured: the more products of parts, the more rows and keys it
// takes, and rows of few features fill no chunk of the depth. A matter of shapes, so that a call's bits are always the
// same.
template <typename T>
bool TilesPay(const AttentionArgs<T>& args) {
  if (TilesForAnyShape()) return true;
  const bool one_part = args.precision == Precision::kMedium || std::is_same_v<T, BFloat16>;
  const bool three_parts = args.precision == Precision::kHighest && std::is_same_v<T, float>;
  const std::int64_t least = one_part ? 32 : three_parts ? 128 : 64;
  const std::int64_t rows = args.query.shape[1] / args.key.shape[1] * args.query.shape[2];
  const auto fills = [](std::int64_t depth) { return depth >= 24 && 3 * depth >= 2 * ((depth + 31) / 32 * 32); };
  return rows >= least && args.key.shape[2] >= least && fills(args.query.shape[3]) && fills(args.value.shape[3]);
}

HEADWISE_EXPORT_KERNELS(Attention)

template <typename T>
const AttentionKernel<T>& GetAttentionKernel(const AttentionArgs<T>& args) {
  if constexpr (!std::is_same_v<T, double>) {
    if (AmxChosen() && TilesPay(args)) return *AmxAttentionKernel<T>();
  }
  return ChosenAttentionKernel<T>();
}
template const AttentionKernel<Float16>& GetAttentionKernel(const AttentionArgs<Float16>&);
template const AttentionKernel<BFloat16>& GetAttentionKernel(const AttentionArgs<BFloat16>&);
template const AttentionKernel<float>& GetAttentionKernel(const AttentionArgs<float>&);
template const AttentionKernel<double>& GetAttentionKernel(const AttentionArgs<double>&);

}  // namespace headwise
#endif
