// Memory for large arrays.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace headwise::bench {

// Memory aligned to huge pages, and backed by them if the system has them, like NumPy's arrays. With small pages, large
// arrays are limited by the page table instead of by memory bandwidth.
class Memory {
 public:
  explicit Memory(std::size_t bytes) {
    const std::size_t rounded = (bytes / kPage + 1) * kPage;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, rounded)));
    if (data_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes >= kPage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
  }

  std::byte* data() const { return data_.get(); }

 private:
  static constexpr std::size_t kPage = 2 << 20;
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace headwise::bench
