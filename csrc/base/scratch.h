// Working memory of a call, one piece per thread, and its layout.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace headwise {

constexpr std::size_t kCacheLine = 64;

// `size` times all the counts. Throws std::bad_alloc for a product that no memory can hold, instead of overflowing.
template <typename... Counts>
std::size_t Bytes(std::size_t size, Counts... counts) {
  constexpr auto kMax = static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());
  const auto multiply = [&](std::size_t count) {                     // negative counts have become greater than kMax
    const bool small = count <= 0x7FFF'FFFF && size <= 0x7FFF'FFFF;  // the usual case; spares the division
    if (!small && count > kMax / std::max<std::size_t>(1, size)) throw std::bad_alloc();
    size *= count;
  };
  (multiply(static_cast<std::size_t>(counts)), ...);
  return size;
}

// With AddressSanitizer, unused memory is poisoned, and a cache line of it follows every piece.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kRedZone = kCacheLine;
inline void Poison(std::byte* memory, std::size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void Unpoison(std::byte* memory, std::size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
constexpr std::size_t kRedZone = 0;
inline void Poison(std::byte*, std::size_t) {}
inline void Unpoison(std::byte*, std::size_t) {}
#endif

// Allocates from a piece of scratch memory, in order. Without a base it only measures: lay out once with `nullptr` to
// learn the size, then again with the memory.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  // Memory for as many T as the product of the counts; aligned to a cache line.
  template <typename T, typename... Counts>
  T* Allocate(Counts... counts) {
    const std::size_t begin = used_, bytes = Bytes(sizeof(T), counts...);
    used_ = Bytes(1, begin + (bytes + kCacheLine - 1) / kCacheLine * kCacheLine + kRedZone);
    if (!base_) return nullptr;
    Unpoison(base_ + begin, bytes);
    Poison(base_ + begin + bytes, used_ - begin - bytes);
    return reinterpret_cast<T*>(base_ + begin);
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// Memory for `threads` threads. To be constructed before a parallel region, where std::bad_alloc may be thrown.
class Scratch {
 public:
  Scratch(int threads, std::size_t bytes_per_thread)
      : stride_(Bytes(1, bytes_per_thread) + kCacheLine),
        memory_(static_cast<std::byte*>(::operator new (Bytes(stride_, threads), std::align_val_t{kCacheLine}))) {
    for (int i = 0; i < threads; ++i) Poison(thread(i) + bytes_per_thread, kCacheLine);
  }

  std::byte* thread(int index) const { return memory_.get() + stride_ * static_cast<std::size_t>(index); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{kCacheLine}); }
  };
  std::size_t stride_;
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace headwise
