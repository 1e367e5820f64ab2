// The name of a target leads to the code that was compiled for it.
//
// Compiled once per target, like the kernels (foreach_target.h includes this file again for each): each copy lists
// the kernels of its own namespace, without Highway's table of targets and the index into it, which are under test.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "targets_test.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include <map>
#include <vector>

#include "activation/kernel.h"
#include "alibi/kernel.h"
#include "attention/kernel.h"
#include "hwy/highway.h"
#include "layer_norm/kernel.h"
#include "linear/kernel.h"
#include "rope/kernel.h"
#include "softmax/kernel.h"

#ifndef HEADWISE_TARGETS_TEST_ONCE
#define HEADWISE_TARGETS_TEST_ONCE
namespace headwise::testing {

using Tables = std::vector<const void*>;

// By Highway's target. To be called only on a processor that supports the target.
inline std::map<std::int64_t, Tables (*)()>& Compiled() {
  static std::map<std::int64_t, Tables (*)()> compiled;
  return compiled;
}

}  // namespace headwise::testing
#endif

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Defined in */kernel.cc.
const KernelSet<ActivationKernel>* ActivationKernels();
const KernelSet<AlibiKernel>* AlibiKernels();
const KernelSet<AttentionKernel>* AttentionKernels();
const KernelSet<LayerNormKernel>* LayerNormKernels();
const LinearKernelSet* LinearKernels();
const KernelSet<RopeKernel>* RopeKernels();
const KernelSet<SoftmaxKernel>* SoftmaxKernels();

testing::Tables OwnTables() {
  return {AlibiKernels(),
          &AttentionKernels()->bfloat16,
          &AttentionKernels()->float32,
          &AttentionKernels()->float64,
          LayerNormKernels(),
          &LinearKernels()->bfloat16,
          &LinearKernels()->float32,
          &LinearKernels()->float64,
          &LinearKernels()->bfloat16_weight,
          RopeKernels(),
          SoftmaxKernels(),
          ActivationKernels()};
}

[[maybe_unused]] const bool compiled = (testing::Compiled()[HWY_TARGET] = &OwnTables, true);

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "support.h"

namespace headwise::testing {
namespace {

const std::map<std::string, std::int64_t> kBits = {
    {"avx512_amx", HWY_AVX3},
    {"avx512_bf16", HWY_AVX3},
    {"avx512", HWY_AVX3},
    {"avx2", HWY_AVX2},
    {"sse4", HWY_SSE4},
#ifdef HWY_SSE2
    {"sse2", HWY_SSE2},
#endif
#ifdef HWY_NEON_WITHOUT_AES
    {"neon", HWY_NEON | HWY_NEON_WITHOUT_AES},
#else
    {"neon", HWY_NEON},
#endif
    {"scalar", HWY_EMU128 | HWY_SCALAR},
};

// Attention over 128 queries and keys with head_dim 64, which uses bf16 backends where the target has one.
template <typename T>
const void* Attention() {
  AttentionArgs<T> args;
  args.query.shape = args.key.shape = args.value.shape = {1, 1, 128, 64};
  return &GetAttentionKernel(args);
}

Tables Chosen() {
  return {&ChosenAlibiKernels(),     Attention<BFloat16>(),      Attention<float>(),
          Attention<double>(),       &ChosenLayerNormKernels(),  &GetLinearKernel<BFloat16>(),
          &GetLinearKernel<float>(), &GetLinearKernel<double>(), &GetLinearKernel<float, BFloat16>(),
          &ChosenRopeKernels(),      &ChosenSoftmaxKernels(),    &ChosenActivationKernels()};
}

class TargetsTest : public OnTarget {};

TEST_P(TargetsTest, NameLeadsToItsCode) {
  Tables own;
  for (const auto& [bit, tables] : Compiled()) {
    if (bit & kBits.at(GetParam())) own = tables();
  }
  ASSERT_FALSE(own.empty());
  if (GetParam() == "avx512_amx") {
    own[1] = AmxAttentionKernel<BFloat16>(), own[2] = AmxAttentionKernel<float>();
    own[5] = AmxLinearKernel<BFloat16>(), own[6] = AmxLinearKernel<float>();
  }
  // float at "highest" has three terms: attention uses FMA, and linear's BF16 dot kernel calls FMA itself.
  if (GetParam() == "avx512_bf16") {
    own[1] = DotAttentionKernel<BFloat16>();
    own[5] = DotLinearKernel<BFloat16>(), own[6] = DotLinearKernel<float>();
  }
  EXPECT_EQ(Chosen(), own);
}

HEADWISE_ON_EVERY_TARGET(TargetsTest);

}  // namespace
}  // namespace headwise::testing
#endif
