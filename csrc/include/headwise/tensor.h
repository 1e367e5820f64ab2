// What every operation takes: a pointer, a shape and strides. Nothing is owned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace headwise {

// Strides count elements, not bytes; they may be negative, and 0 on a broadcast axis.
template <typename T, int kRank>
struct View {
  T* data = nullptr;
  std::array<std::int64_t, kRank> shape{};
  std::array<std::int64_t, kRank> stride{};

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
