// Working memory of a call, one piece per thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

namespace headwise {

constexpr std::size_t kCacheLine = 64;

// Grows towards the end of a piece of scratch memory. With no base it only measures: lay out once with `nullptr` to
// learn the size, then again with the memory.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  T* Take(std::int64_t count) {
    const std::size_t begin = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

// Allocated before a parallel region, where std::bad_alloc can still be thrown.
class Scratch {
 public:
  Scratch(int threads, std::size_t bytes_per_thread) : stride_(bytes_per_thread + kCacheLine) {
    if (stride_ > std::numeric_limits<std::size_t>::max() / static_cast<std::size_t>(threads)) throw std::bad_alloc();
    memory_.reset(static_cast<std::byte*>(
        ::operator new (stride_* static_cast<std::size_t>(threads), std::align_val_t{kCacheLine})));
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
