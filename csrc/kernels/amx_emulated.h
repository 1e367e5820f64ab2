// The tile unit of amx.h by AVX-512, for tests on machines without one (HEADWISE_EMULATE_AMX): the same sums, in the
// same order. Included there.
#pragma once

#include <immintrin.h>

#include <cstring>

namespace headwise::amx {

struct alignas(64) Tile {
  std::uint32_t row[16][16];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

class Tiles {
 public:
  Tiles() {
    std::memset(tiles, 0, sizeof(tiles));
    configured = true;
  }
  ~Tiles() { configured = false; }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// As the processor does, stops the process if the tiles have not been configured.
inline Tile& Configured(int tile) {
  if (!configured) __builtin_trap();
  return tiles[tile];
}

template <int kTile>
inline void Zero() {
  std::memset(&Configured(kTile), 0, sizeof(Tile));
}

template <int kTile, int kOffset = 0>
inline void Load(const void* from, std::int64_t row_bytes) {
  Tile& tile = Configured(kTile);
  for (int i = 0; i < 16; ++i) std::memcpy(tile.row[i], static_cast<const char*>(from) + kOffset + i * row_bytes, 64);
}

template <int kOffset>
inline void Fetch(const void*) {}

template <int kTile>
inline void Store(void* to, std::int64_t row_bytes) {
  const Tile& tile = Configured(kTile);
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * row_bytes, tile.row[i], 64);
}

__attribute__((target("avx512f"))) inline __m512 FirstHalves(__m512i words) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, words, 16));
}
__attribute__((target("avx512f"))) inline __m512 SecondHalves(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)));
}

// Products of the first halves of the words and of the second ones are added up by themselves, rounded once each, and
// subnormal numbers count as 0 (Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS).
__attribute__((target("avx512f"))) inline void MultiplyAddTiles(Tile& c, const Tile& a, const Tile& b) {
  const unsigned state = _mm_getcsr();
  _mm_setcsr(0x9FC0);  // every exception masked; subnormal numbers, in and out, are 0
  for (int m = 0; m < 16; ++m) {
    __m512 first = _mm512_setzero_ps(), second = first;
    for (int k = 0; k < 16; ++k) {
      const __m512i b_k = _mm512_load_si512(b.row[k]);
      const __m512i a_mk = _mm512_set1_epi32(static_cast<int>(a.row[m][k]));
      first = _mm512_fmadd_ps(FirstHalves(a_mk), FirstHalves(b_k), first);
      second = _mm512_fmadd_ps(SecondHalves(a_mk), SecondHalves(b_k), second);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(c.row[m]), _mm512_add_ps(first, second));
    _mm512_store_ps(c.row[m], sum);
  }
  _mm_setcsr(state);
}

template <int kC, int kA, int kB>
inline void MultiplyAdd() {
  MultiplyAddTiles(Configured(kC), Configured(kA), Configured(kB));
}

}  // namespace headwise::amx
