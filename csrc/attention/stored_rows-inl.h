// Rows of the keys or values of one head, in the type K that they are stored in, loaded as vectors of T.
//
// A number of an int8 row is factor * (integer + bit / 2): with the bit, stored numbers are multiples of factor / 2.
// Load returns integer + bit / 2; the caller multiplies by the factor of the row.

#if defined(HEADWISE_ATTENTION_STORED_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_STORED_ROWS_INL_H_
#undef HEADWISE_ATTENTION_STORED_ROWS_INL_H_
#else
#define HEADWISE_ATTENTION_STORED_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "headwise/attention.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename K>
HWY_INLINE void PrefetchRows(const K* row, int64_t rows, int64_t stride, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(K);
  for (; rows > 0; --rows, row += stride) {
    for (int64_t i = 0; i < width; i += kLine) hwy::Prefetch(row + i);
  }
}

template <typename K>
struct StoredRows {
  StoredRows(const View<const K, 4>& rows, int64_t batch, int64_t head)
      : data(rows.at(batch, head)), stride(rows.stride[2]) {}

  template <class Lanes, class D>
  HWY_INLINE hn::Vec<D> Load(Lanes lanes, D d, int64_t row, int64_t column) const {
    return lanes.Load(d, data + row * stride + column);
  }
  // Columns [column, column + width) of the rows [row, row + rows).
  HWY_INLINE void Prefetch(int64_t row, int64_t rows, int64_t column, int64_t width) const {
    PrefetchRows(data + row * stride + column, rows, stride, width);
  }
  void Skip(int64_t rows) { data += rows * stride; }

  const K* data;
  int64_t stride;
};

template <>
struct StoredRows<std::int8_t> {
  StoredRows(const View<const std::int8_t, 4>& rows, const View<const std::uint8_t, 4>& low_bits, int64_t batch,
             int64_t head)
      : data(rows.at(batch, head)),
        stride(rows.stride[2]),
        bits(low_bits.at(batch, head)),
        bits_stride(low_bits.stride[2]) {}

  // `column` is a multiple of the number of lanes.
  template <class Lanes, class D>
  HWY_INLINE hn::Vec<D> Load(Lanes lanes, D d, int64_t row, int64_t column) const {
    constexpr std::size_t kWidth = hn::MaxLanes(D());
    const auto integers = lanes.Load(d, data + row * stride + column);
    const std::uint8_t* from = bits + row * bits_stride + column / 8;
    if constexpr (kWidth >= 8 && std::is_same_v<Lanes, AllLanes>) {
      return AddHalves(d, integers, hn::LoadMaskBits(d, from));
    } else {
      std::uint8_t buffer[8] = {};
      if constexpr (kWidth >= 8) {
        std::memcpy(buffer, from, static_cast<std::size_t>(lanes.count + 7) / 8);
      } else {
        buffer[0] = static_cast<std::uint8_t>(*from >> (column % 8));
      }
      return AddHalves(d, integers, hn::LoadMaskBits(d, buffer));
    }
  }
  // The bits of a few rows are in the line of the first one's.
  HWY_INLINE void Prefetch(int64_t row, int64_t rows, int64_t column, int64_t width) const {
    PrefetchRows(data + row * stride + column, rows, stride, width);
    hwy::Prefetch(bits + row * bits_stride + column / 8);
  }
  void Skip(int64_t rows) { data += rows * stride, bits += rows * bits_stride; }

  const std::int8_t* data;
  int64_t stride;
  const std::uint8_t* bits;
  int64_t bits_stride;

 private:
  template <class D>
  static HWY_INLINE hn::Vec<D> AddHalves(D d, hn::Vec<D> integers, hn::Mask<D> bits) {
    return hn::IfThenElse(bits, hn::Add(integers, hn::Set(d, hn::TFromD<D>{0.5f})), integers);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
