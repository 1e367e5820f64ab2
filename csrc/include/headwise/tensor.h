// The array type of every operation: a pointer, a shape and strides. A view owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace headwise {

// Strides are in elements; they may be negative, and are 0 on broadcast axes.
template <typename T, int kRank>
struct View {
  T* data = nullptr;
  std::array<std::int64_t, kRank> shape{};
  std::array<std::int64_t, kRank> stride{};

  // The element at an index, of which trailing zeros may be omitted: at(n, h) is the first element of [n, h, ...].
  template <typename... Index>
  T* at(Index... index) const {
    static_assert(sizeof...(Index) <= kRank, "more indices than axes");
    T* element = data;
    int axis = 0;
    ((element += static_cast<std::int64_t>(index) * stride[axis++]), ...);
    return element;
  }

  explicit operator bool() const { return data != nullptr; }
};

}  // namespace headwise
