// Matrix products of bf16 numbers, one term (bf16_split-inl.h), in vector registers by AVX512_BF16's
//   c[n] += a[2n + 1] b[2n + 1], c[n] += a[2n] b[2n]
// for c of float32 and pairs of bfloat16 in 32-bit words (Intel 64 and IA-32 Architectures Software Developer's Manual,
// VDPBF16PS): twice the multiply-adds of float32 FMA, each rounded to nearest; subnormal numbers count as 0.
//
// Blocking: 8 rows by 32 columns of sums in registers. Used by attention/backends and linear/kernel_dot.cc; the
// backward pass of attention takes DotMultiplier for the register tile of fma-inl.h.

#if defined(HEADWISE_MATMUL_BF16_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_MATMUL_BF16_DOT_INL_H_
#undef HEADWISE_MATMUL_BF16_DOT_INL_H_
#else
#define HEADWISE_MATMUL_BF16_DOT_INL_H_
#endif

#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "matmul/bf16_policy.h"
#include "matmul/bf16_split-inl.h"
#include "matmul/fma-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// The step of GemmTile (fma-inl.h) on vectors of float32 whose bits are pairs of bf16. Products are exact, and a sum is
// rounded after each.
struct DotMultiplier {
  template <class V>
  static HWY_INLINE V MultiplyAdd(V a, V b, V sum) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
};

struct DotBackend {
  static constexpr MatmulBackend kBackend = MatmulBackend::kBf16Dot;
  static constexpr int kStages = 1;
  static constexpr bool kFinishes = true;  // Multiply passes products on while they are in registers

  struct Scope {};  // vector registers need no setup

  using V = hn::Vec<Tag<float>>;

  // Calls finish(r, left, right) with row r of A B, 32 x 32, over `chunks` chunks of the depth. Without `lower`, only
  // the first 16 rows. 8 x 2 sums stay in registers; rows of A are 16 words apart in both tiles.
  template <int kTerms, class Finish>
  static HWY_INLINE void Multiply(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                                  const Finish& finish) {
    static_assert(kTerms == 1);
    for (int row = 0; row < (lower ? kSide : kTileSide); row += kRows) {
      MultiplyRows<false>(a, b, chunks, row, nullptr, finish);
    }
  }

  // to[32, 32] = A B; rows of `to` are `stride` apart. `next`, the B of the next call, is prefetched while the first 16
  // rows are computed.
  template <int kTerms>
  static HWY_INLINE void MultiplyAndFetch(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower,
                                          float* to, int64_t stride, const std::uint32_t* next) {
    static_assert(kTerms == 1);
    const auto finish = [to, stride](int r, V left, V right) HWY_ATTR {
      hn::StoreU(left, Tag<float>(), to + r * stride);
      hn::StoreU(right, Tag<float>(), to + r * stride + kTileSide);
    };
    for (int row = 0; row < kTileSide; row += kRows, next += chunks * kTileSize) {
      MultiplyRows<true>(a, b, chunks, row, next, finish);
    }
    for (int row = kTileSide; lower && row < kSide; row += kRows) {
      MultiplyRows<false>(a, b, chunks, row, nullptr, finish);
    }
  }

 private:
  static constexpr int kRows = 8;

  using Words = hn::Vec<Tag<std::uint32_t>>;

  // kFetch: prefetches a cache line from `ahead` on for each k. Not inlined: GCC 12 would then keep the sums in memory.
  template <bool kFetch, class Finish>
  static HWY_NOINLINE void MultiplyRows(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, int row,
                                        [[maybe_unused]] const std::uint32_t* ahead, const Finish& finish) {
    const Tag<float> d;
    const Tag<std::uint32_t> words;
    V sum[kRows][2];
    a += row * kTileSide;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = hn::Zero(d);
    for (int64_t chunk = 0; chunk < chunks; ++chunk, a += kChunkSize<1>, b += kChunkSize<1>) {
#pragma GCC unroll 4
      for (int k = 0; k < kTileSide; ++k) {
        if constexpr (kFetch) hwy::Prefetch(ahead), ahead += kTileSide;
        const auto left = hn::Load(words, b + k * kTileSide), right = hn::Load(words, b + kTileSize + k * kTileSide);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const auto pair = hn::Set(words, a[r * kTileSide + k]);
          sum[r][0] = MultiplyAdd(pair, left, sum[r][0]);
          sum[r][1] = MultiplyAdd(pair, right, sum[r][1]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) finish(row + r, sum[r][0], sum[r][1]);
  }

  static HWY_INLINE V MultiplyAdd(Words a, Words b, V sum) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
