// Conversions between 16-bit types in memory and float in vectors: widening is exact; narrowing rounds to nearest even
// and keeps NaN. int8 is only widened.
//
// AVX2, AVX-512 and 64-bit NEON convert float16 in hardware. Elsewhere Highway 1.0.3 truncates float16 and mishandles
// infinity, and it truncates bfloat16 on every target; hence the integer code here. Subnormal float16 numbers are
// normal in float, so results do not depend on the processor's denormal mode.

#if defined(HEADWISE_SIMD_FLOAT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_SIMD_FLOAT16_INL_H_
#undef HEADWISE_SIMD_FLOAT16_INL_H_
#else
#define HEADWISE_SIMD_FLOAT16_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "headwise/dtype.h"
#include "hwy/highway.h"

#undef HEADWISE_CONVERTS_FLOAT16
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)) || \
    (HWY_ARCH_ARM_A64 && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR)
#define HEADWISE_CONVERTS_FLOAT16 1
#else
#define HEADWISE_CONVERTS_FLOAT16 0
#endif

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A vector of 16-bit lanes, as many as D has floats.
template <class D>
using Tag16 = hn::Rebind<std::uint16_t, D>;
template <class D>
using Vec16 = hn::Vec<Tag16<D>>;

template <typename T>
HWY_INLINE const std::uint16_t* BitsAt(const T* number) {
  return reinterpret_cast<const std::uint16_t*>(number);
}
template <typename T>
HWY_INLINE std::uint16_t* BitsAt(T* number) {
  return reinterpret_cast<std::uint16_t*>(number);
}

// ------------------------------------------------------------------------------------------------------------ vectors

template <class D>
HWY_INLINE hn::Vec<D> WidenBits(D d, BFloat16, Vec16<D> bits) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> WidenBits(D d, Float16, Vec16<D> bits) {
#if HEADWISE_CONVERTS_FLOAT16
  const hn::Rebind<hwy::float16_t, D> df16;
  return hn::PromoteTo(d, hn::BitCast(df16, bits));
#else
  const hn::RebindToUnsigned<D> du;
  const auto wide = hn::PromoteTo(du, bits);
  const auto number = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7FFFu)));
  const auto exponent = hn::And(number, hn::Set(du, 0x1Fu << 23));
  const auto bias = hn::Set(du, (127u - 15u) << 23);
  const auto normal = hn::Add(number, bias);
  // The exponent of infinity and NaN, 31, becomes 255.
  const auto special = hn::Add(normal, bias);
  // m 2^-24 = (2^-14 + m 2^-24) - 2^-14, exactly.
  const auto min_normal = hn::Set(du, (127u - 14u) << 23);
  const auto subnormal =
      hn::BitCast(du, hn::Sub(hn::BitCast(d, hn::Add(number, min_normal)), hn::BitCast(d, min_normal)));
  const auto finite = hn::IfThenElse(hn::Eq(exponent, hn::Zero(du)), subnormal, normal);
  const auto magnitude = hn::IfThenElse(hn::Eq(exponent, hn::Set(du, 0x1Fu << 23)), special, finite);
  return hn::BitCast(d, hn::Or(magnitude, hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000u)))));
#endif
}

// The low 16 bits of each lane, whose other bits are 0.
template <class D, class V>
HWY_INLINE Vec16<D> LowBits(D, V bits) {
  const hn::RebindToSigned<D> di;
  return hn::DemoteTo(Tag16<D>(), hn::BitCast(di, bits));
}

// Round to nearest even: adds half a unit in the last place minus one, and one more if the kept digit is odd. A carry
// into the exponent gives the right result, including infinity.
template <class D>
HWY_INLINE Vec16<D> NarrowBits(D d, BFloat16, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto cut = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(cut, hn::Set(du, 1u));
  const auto nearest = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu))));
  const auto nan = hn::Or(cut, hn::Set(du, 0x40u));  // quiet, for any payload
  return LowBits(d, hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), nan, nearest));
}

template <class D>
HWY_INLINE Vec16<D> NarrowBits([[maybe_unused]] D d, Float16, hn::Vec<D> v) {
#if HEADWISE_CONVERTS_FLOAT16
  const hn::Rebind<hwy::float16_t, D> df16;
  return hn::BitCast(Tag16<D>(), hn::DemoteTo(df16, v));
#else
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto number = hn::BitCast(du, hn::Abs(v));
  const auto below = [&](std::uint32_t bits) HWY_ATTR {
    return hn::RebindMask(du, hn::Lt(hn::BitCast(di, number), hn::Set(di, static_cast<std::int32_t>(bits))));
  };
  // As for bfloat16, but 13 bits are dropped, and the exponent is rebiased.
  const auto odd = hn::And(hn::ShiftRight<13>(number), hn::Set(du, 1u));
  const auto rebias = hn::Set(du, 0xFFFu - ((127u - 15u) << 23));
  const auto normal = hn::ShiftRight<13>(hn::Add(number, hn::Add(odd, rebias)));
  // At 1/2, a unit in the last place of float is 2^-24, the spacing of float16's subnormals: the addition rounds.
  const auto half = hn::Set(du, 126u << 23);
  const auto subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, number), hn::BitCast(d, half))), half);
  const auto infinity = hn::Set(du, 0x7C00u);
  const auto special = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7E00u), infinity);
  const auto finite = hn::IfThenElse(below((127u - 14u) << 23), subnormal, normal);
  const auto magnitude = hn::IfThenElse(below((127u + 16u) << 23), finite, special);  // up to 2^16
  const auto sign = hn::And(hn::ShiftRight<16>(hn::BitCast(du, v)), hn::Set(du, 0x8000u));
  return LowBits(d, hn::Or(magnitude, sign));
#endif
}

// -------------------------------------------------------------------------------------------------------------- memory

// Loads a vector of D from memory of T, which is a 16-bit type, int8 or D's own.
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadWide(D d, const T* from) {
  if constexpr (kIs16Bit<T>) {
    return WidenBits(d, T(), hn::LoadU(Tag16<D>(), BitsAt(from)));
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    const hn::RebindToSigned<D> di;
    return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(hn::Rebind<std::int8_t, D>(), from)));
  } else {
    return hn::LoadU(d, from);
  }
}
// The element at `from`, widened, in every lane.
template <class D, typename T>
HWY_INLINE hn::Vec<D> BroadcastWide(D d, const T* from) {
  if constexpr (kIs16Bit<T>) {
    return WidenBits(d, T(), hn::Set(Tag16<D>(), *BitsAt(from)));
  } else {
    return hn::Set(d, *from);
  }
}
template <class D, typename T>
HWY_INLINE void StoreNarrow(hn::Vec<D> v, D d, T* to) {
  if constexpr (kIs16Bit<T>) {
    hn::StoreU(NarrowBits(d, T(), v), Tag16<D>(), BitsAt(to));
  } else {
    hn::StoreU(v, d, to);
  }
}

// Loads elements 2 i into a and 2 i + 1 into b.
template <class D, typename T>
HWY_INLINE void LoadInterleavedWide(D d, const T* from, hn::Vec<D>& a, hn::Vec<D>& b) {
  if constexpr (!kIs16Bit<T>) {
    hn::LoadInterleaved2(d, from, a, b);
  } else {
#if HWY_TARGET == HWY_SCALAR
    a = LoadWide(d, from);
    b = LoadWide(d, from + 1);
#else
    const hn::RebindToUnsigned<D> du;
    const hn::Repartition<std::uint16_t, D> pairs;
    const auto both = hn::BitCast(du, hn::LoadU(pairs, BitsAt(from)));
    a = WidenBits(d, T(), LowBits(d, hn::And(both, hn::Set(du, 0xFFFFu))));
    b = WidenBits(d, T(), LowBits(d, hn::ShiftRight<16>(both)));
#endif
  }
}
template <class D, typename T>
HWY_INLINE void StoreInterleavedNarrow(hn::Vec<D> a, hn::Vec<D> b, D d, T* to) {
  if constexpr (!kIs16Bit<T>) {
    hn::StoreInterleaved2(a, b, d, to);
  } else {
#if HWY_TARGET == HWY_SCALAR
    StoreNarrow(a, d, to);
    StoreNarrow(b, d, to + 1);
#else
    const hn::RebindToUnsigned<D> du;
    const hn::Repartition<std::uint16_t, D> pairs;
    const auto first = hn::PromoteTo(du, NarrowBits(d, T(), a)), second = hn::PromoteTo(du, NarrowBits(d, T(), b));
    hn::StoreU(hn::BitCast(pairs, hn::Or(first, hn::ShiftLeft<16>(second))), pairs, BitsAt(to));
#endif
  }
}

// Loads or stores the first `count` lanes of a 16-bit type, at least one and fewer than the vector has. Memory beyond
// them is not touched; the other lanes are loaded as 0. AVX2 has masks for lanes of 32 bits and more only: pairs of
// lanes go through them, and the last lane, the second of a pair or alone, by itself.
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadFirst16(D d, const T* from, std::size_t count) {
  const Tag16<D> d16;
#if !HWY_MEM_OPS_MIGHT_FAULT
  return WidenBits(d, T(), hn::MaskedLoad(hn::FirstN(d16, count), d16, BitsAt(from)));
#elif HWY_TARGET == HWY_AVX2
  const hn::Repartition<std::uint32_t, Tag16<D>> pairs;
  const auto whole =
      hn::MaskedLoad(hn::FirstN(pairs, count / 2), pairs, reinterpret_cast<const std::uint32_t*>(BitsAt(from)));
  const auto is_last = hn::Eq(hn::Iota(d16, std::uint16_t{0}), hn::Set(d16, static_cast<std::uint16_t>(count - 1)));
  const auto last = hn::IfThenElseZero(is_last, hn::Set(d16, BitsAt(from)[count - 1]));
  return WidenBits(d, T(), hn::Or(hn::BitCast(d16, whole), last));
#else
  HWY_ALIGN std::uint16_t buffer[hn::MaxLanes(d)] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return WidenBits(d, T(), hn::Load(d16, buffer));
#endif
}
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadFirstWide(D d, const T* from, std::size_t count) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    HWY_ALIGN std::int8_t buffer[hn::MaxLanes(d)];
    for (std::size_t i = 0; i < hn::MaxLanes(d); ++i) buffer[i] = i < count ? from[i] : std::int8_t{0};
    return LoadWide(d, buffer);
  } else {
    return LoadFirst16(d, from, count);
  }
}
template <class D, typename T>
HWY_INLINE void StoreFirstNarrow(hn::Vec<D> v, D d, T* to, std::size_t count) {
  const Tag16<D> d16;
  const Vec16<D> bits = NarrowBits(d, T(), v);
#if !HWY_MEM_OPS_MIGHT_FAULT
  hn::BlendedStore(bits, hn::FirstN(d16, count), d16, BitsAt(to));
#else
  HWY_ALIGN std::uint16_t buffer[hn::MaxLanes(d)];
  hn::Store(bits, d16, buffer);
#if HWY_TARGET == HWY_AVX2
  const hn::Repartition<std::uint32_t, Tag16<D>> pairs;
  hn::BlendedStore(hn::BitCast(pairs, bits), hn::FirstN(pairs, count / 2), pairs,
                   reinterpret_cast<std::uint32_t*>(BitsAt(to)));
  BitsAt(to)[count - 1] = buffer[count - 1];
#else
  std::memcpy(to, buffer, count * sizeof(T));
#endif
#endif
}

// Non-temporal store of a whole vector of T to an aligned address; an ordinary store for vectors of fewer than 16
// bytes.
template <class D, typename T>
HWY_INLINE void StreamNarrow(hn::Vec<D> v, D d, T* to) {
  if constexpr (!kIs16Bit<T>) {
    hn::Stream(v, d, to);
  } else if constexpr (hn::MaxLanes(d) * sizeof(T) < 16) {
    StoreNarrow(v, d, to);
  } else {
    hn::Stream(NarrowBits(d, T(), v), Tag16<D>(), BitsAt(to));
  }
}

// Converts n elements of a 16-bit type to float, and back; of int8 to float only.
template <typename T>
HWY_INLINE void Widen(const T* from, std::int64_t n, float* to) {
  const hn::ScalableTag<float> d;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + width <= n; j += width) hn::StoreU(LoadWide(d, from + j), d, to + j);
  if (j == n) return;
  HWY_ALIGN float end[hn::MaxLanes(d)];
  hn::Store(LoadFirstWide(d, from + j, static_cast<std::size_t>(n - j)), d, end);
  std::memcpy(to + j, end, static_cast<std::size_t>(n - j) * sizeof(float));
}
template <typename T>
HWY_INLINE void Narrow(const float* from, std::int64_t n, T* to) {
  const hn::ScalableTag<float> d;
  const auto width = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + width <= n; j += width) StoreNarrow(hn::LoadU(d, from + j), d, to + j);
  if (j == n) return;
  HWY_ALIGN float end[hn::MaxLanes(d)] = {};
  std::memcpy(end, from + j, static_cast<std::size_t>(n - j) * sizeof(float));
  StoreFirstNarrow(hn::Load(d, end), d, to + j, static_cast<std::size_t>(n - j));
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
