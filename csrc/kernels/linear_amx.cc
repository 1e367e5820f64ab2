// Compiled for AVX-512 alone, whose vectors do all but the products. Only float32 goes by tiles.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear_amx.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Below foreach_target.h, or the first target would miss them.
#include "kernels/amx.h"
#include "kernels/linear-inl.h"
#include "kernels/linear.h"
#include "kernels/linear_amx-inl.h"
#include "kernels/linear_few-inl.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// function(Int<parts>)
template <class Function>
auto WithParts(Precision precision, const Function& function) {
  switch (precision) {
    case Precision::kMedium:
      return function(Int<1>());
    case Precision::kHigh:
      return function(Int<2>());
    default:
      return function(Int<3>());
  }
}

// What does not pay on tiles, on packed weights neither: the bits do not tell whether weights were packed.
bool ByTiles(const LinearArgs<float>& args) {
  return TilesPay(args.out.shape[0], args.weight.shape[0], args.weight.shape[1]);
}

LinearArgs<float> Unpacked(LinearArgs<float> args) {
  args.packed = nullptr;
  return args;
}

std::size_t AmxLinearScratchBytes(const LinearArgs<float>& args, const LinearBlock& largest) {
  if (!ByTiles(args)) return LinearScratchBytes<float>(Unpacked(args), largest);
  Arena measure(nullptr);
  WithParts(args.precision, [&](auto parts) { AmxLinear<parts.value>(measure, args, largest); });
  return measure.used();
}

void AmxLinearRun(const LinearArgs<float>& args, const LinearBlock& block, std::byte* scratch) {
  if (!ByTiles(args)) return LinearRun<float>(Unpacked(args), block, scratch);
  Arena arena(scratch);
  WithParts(args.precision, [&](auto parts) { AmxLinear<parts.value>(arena, args, block).Run(); });
}

std::size_t AmxPackedBytes(View<const float, 2> weight, Precision precision) {
  const int64_t chunks = Sides(weight.shape[1]) * Chunks(weight.shape[0]);
  return WithParts(precision, [&](auto parts) {
    return static_cast<std::size_t>(chunks * kChunkSize<parts.value>) * sizeof(std::uint32_t);
  });
}

// [group of 32 columns][chunk][part][2 tiles]
void AmxPack(View<const float, 2> weight, Precision precision, int64_t begin, int64_t end, std::byte* packed) {
  const int64_t chunks = Chunks(weight.shape[0]);
  WithParts(precision, [&](auto parts) {
    const int64_t group_size = chunks * kChunkSize<parts.value>;
    AmxLinear<parts.value>::PackWeight(weight, begin, end, 0, chunks, group_size,
                                       reinterpret_cast<std::uint32_t*>(packed) + begin / kSide * group_size);
  });
}

// Rows too few for tiles go by float32, as everywhere.
constexpr LinearKernel<float> kAmxLinear{&AmxLinearScratchBytes, &AmxLinearRun, &LinearFewRows<float>, &AmxPackedBytes,
                                         &AmxPack};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace headwise {

const LinearKernel<float>* AmxLinearKernel() {
#if HEADWISE_AMX && (HWY_TARGETS & HWY_AVX3)
  return &N_AVX3::kAmxLinear;
#else
  return nullptr;
#endif
}

}  // namespace headwise
#endif
