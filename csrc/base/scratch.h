// Working memory of a call, one piece per thread.
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

// `size` times all the counts; std::bad_alloc where no memory can be so large, instead of a product that has wrapped.
template <typename... Counts>
std::size_t Bytes(std::size_t size, Counts... counts) {
  constexpr auto kMost = static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());
  const auto multiply = [&](std::size_t count) {                     // a negative one has become greater than kMost
    const bool small = count <= 0x7FFF'FFFF && size <= 0x7FFF'FFFF;  // most are, and division takes its time
    if (!small && count > kMost / std::max<std::size_t>(1, size)) throw std::bad_alloc();
    size *= count;
  };
  (multiply(static_cast<std::size_t>(counts)), ...);
  return size;
}

// AddressSanitizer is told of what belongs to nobody, and there is more of that: a line behind every piece.
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kRedZone = kCacheLine;
inline void Forbid(std::byte* memory, std::size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void Allow(std::byte* memory, std::size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
constexpr std::size_t kRedZone = 0;
inline void Forbid(std::byte*, std::size_t) {}
inline void Allow(std::byte*, std::size_t) {}
#endif

// Grows towards the end of a piece of scratch memory. With no base it only measures: lay out once with `nullptr` to
// learn the size, then again with the memory.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  // Memory for the product of the counts.
  template <typename T, typename... Counts>
  T* Allocate(Counts... counts) {
    const std::size_t begin = used_, bytes = Bytes(sizeof(T), counts...);
    used_ = Bytes(1, begin + (bytes + kCacheLine - 1) / kCacheLine * kCacheLine + kRedZone);
    if (!base_) return nullptr;
    Allow(base_ + begin, bytes);
    Forbid(base_ + begin + bytes, used_ - begin - bytes);
    return reinterpret_cast<T*>(base_ + begin);
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// Allocated before a parallel region, where std::bad_alloc can still be thrown.
class Scratch {
 public:
  Scratch(int threads, std::size_t bytes_per_thread)
      : stride_(Bytes(1, bytes_per_thread) + kCacheLine),
        memory_(static_cast<std::byte*>(::operator new (Bytes(stride_, threads), std::align_val_t{kCacheLine}))) {
    for (int i = 0; i < threads; ++i) Forbid(thread(i) + bytes_per_thread, kCacheLine);
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
