// AMX tiles (Intel Advanced Matrix Extensions): eight registers of 16 rows of 64 bytes, and
//   C[m, n] += sum over k of A[m, 2k] B[k, 2n] + A[m, 2k + 1] B[k, 2n + 1]
// for A and B of bfloat16, two per 32-bit word, and C of float32 (Intel Architecture Instruction Set Extensions,
// TDPBF16PS). Subnormal numbers count as 0. Permission to use AMX: base/amx_permission.h.
#pragma once

#include "matmul/bf16_support.h"

#if HEADWISE_BF16_KERNELS

#include <cstdint>

#include "base/interruption.h"

namespace headwise::amx {

// Configures this thread's tiles as 16 rows of 64 bytes each, and releases them at the end of its lifetime. Other code
// that runs on this thread when the call asks whether it is interrupted may release the tiles.
class Tiles {
 public:
  Tiles() : outer_(RestoreAfterChecks(&Configure)) { Configure(); }
  ~Tiles() {
    asm volatile("tilerelease");
    RestoreAfterChecks(outer_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  static void Configure() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

  const Restore outer_;
};

template <int kTile>
inline void Zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Loads from kOffset bytes after `from`; a constant offset needs no register.
template <int kTile, int kOffset = 0>
inline void Load(const void* from, std::int64_t row_bytes) {
  asm volatile("tileloadd %c3(%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTile), "i"(kOffset) : "memory");
}

// Prefetches a cache line into L1.
template <int kOffset>
inline void Fetch(const void* from) {
  asm volatile("prefetcht0 %c1(%0)" ::"r"(from), "i"(kOffset));
}

template <int kTile>
inline void Store(void* to, std::int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kTile) : "memory");
}

// Tile kC += tile kA * tile kB.
template <int kC, int kA, int kB>
inline void MultiplyAdd() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

}  // namespace headwise::amx

#endif
