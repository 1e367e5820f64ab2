// Compiled for AVX-512 alone, whose vectors do all but the products. float64 does not go by tiles.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear_amx.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/amx.h"
#include "kernels/linear-inl.h"
#include "kernels/linear.h"
#include "kernels/linear_amx-inl.h"
#include "runtime/amx.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// function(Int<parts>). A bfloat16 is its only part, a float16 has two; its third is for the product of the second
// ones, of up to 2^-18 of the whole.
template <typename T, class Function>
auto WithParts(Precision precision, const Function& function) {
  if (precision == Precision::kMedium || std::is_same_v<T, BFloat16>) return function(Int<1>());
  if (precision == Precision::kHigh) return function(Int<2>());
  return function(Int<3>());
}

// Whether tiles are faster than multiply-adds, as measured. What does not pay on tiles, on packed weights neither: the
// bits do not tell whether weights were packed. Without depth there is nothing to multiply, and they write nothing.
template <typename T>
bool TilesPay(const LinearArgs<T>& args) {
  if (TilesForAnyShape()) return args.weight.shape[0] > 0;
  const bool three_parts = WithParts<T>(args.precision, [](auto parts) { return parts.value == 3; });
  const int64_t least = three_parts ? 4 * kChunk : 2 * kChunk;
  return args.out.shape[0] >= kSide && args.weight.shape[0] >= least && args.weight.shape[1] >= least;
}

template <typename T>
LinearArgs<T> Unpacked(LinearArgs<T> args) {
  args.packed = nullptr;
  return args;
}

template <typename T>
std::size_t AmxLinearScratchBytes(const LinearArgs<T>& args, const LinearBlock& largest) {
  if (!TilesPay(args)) return LinearScratchBytes<T>(Unpacked(args), largest);
  Arena measure(nullptr);
  WithParts<T>(args.precision, [&](auto parts) { AmxLinear<T, parts.value>(measure, args, largest); });
  return measure.used();
}

template <typename T>
void AmxLinearRun(const LinearArgs<T>& args, const LinearBlock& block, std::byte* scratch) {
  if (!TilesPay(args)) return LinearRun<T>(Unpacked(args), block, scratch);
  Arena arena(scratch);
  WithParts<T>(args.precision, [&](auto parts) { AmxLinear<T, parts.value>(arena, args, block).Run(); });
}

template <typename T>
std::size_t AmxPackedBytes(View<const T, 2> weight, Precision precision) {
  return WithParts<T>(precision, [&](auto parts) {
    return Bytes(sizeof(std::uint32_t), Sides(weight.shape[1]), Chunks(weight.shape[0]), kChunkSize<parts.value>);
  });
}

// [group of 32 columns][chunk][part][2 tiles]
template <typename T>
void AmxPack(View<const T, 2> weight, Precision precision, int64_t begin, int64_t end, std::byte* packed) {
  const int64_t chunks = Chunks(weight.shape[0]);
  WithParts<T>(precision, [&](auto parts) {
    const int64_t group_size = chunks * kChunkSize<parts.value>;
    AmxLinear<T, parts.value>::PackWeight(weight, begin, end, 0, chunks, group_size,
                                          reinterpret_cast<std::uint32_t*>(packed) + begin / kSide * group_size);
  });
}

template <typename T>
constexpr LinearKernel<T> kAmxLinear{kSide, &AmxLinearScratchBytes<T>, &AmxLinearRun<T>, &AmxPackedBytes<T>,
                                     &AmxPack<T>};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace headwise {

template <typename T>
const LinearKernel<T>* AmxLinearKernel() {
#if HEADWISE_AMX && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kAmxLinear<T>;
#else
  return nullptr;
#endif
}

template const LinearKernel<Float16>* AmxLinearKernel();
template const LinearKernel<BFloat16>* AmxLinearKernel();
template const LinearKernel<float>* AmxLinearKernel();

}  // namespace headwise
#endif
