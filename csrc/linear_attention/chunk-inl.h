// The products of a chunk of tokens, in the accumulator type A: one copy of this code for all element types that share
// it. With P_t the product of the decays from the chunk's begin to token t, and the state S before the chunk:
//
//   U = beta (V - (P * K) S - M U)   M_tj = sum_f k_tf (P_tf / P_jf) k_jf for j < t     (rules with betas; else U = V)
//   O = (P * Q) S + W U              W_tj = sum_f q_tf (P_tf / P_jf) k_jf for j <= t
//   S = P_C S + ((P_C / P) * K)^T U
//
// (Yang et al. 2024, arXiv:2406.06484 and 2412.06464). For a block of tokens, M, U, W and O are computed one after
// another; in U and O, a panel of value columns (of the state and of U) stays in the first-level cache while all tiles
// of kTileRows tokens use it. U of a tile needs U of the tiles before, and is solved by substitution within the tile,
// as the recurrence does. Quotients of decays are never divided. Where a token has one decay, a block is the whole
// chunk, and the quotients are products of the decays in between, a row at a time. Where each feature has its own, a
// block is one tile: the keys before it carry the decays up to its first token, and its rows those from there on; pairs
// within the tile are summed one by one. So a decay near 0 neither overflows nor cancels.

#if defined(HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#undef HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#else
#define HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "linear_attention/chunk_data-inl.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Products of decays from the chunk's begin to each token and behind each token to its end.
template <typename A>
HWY_NOINLINE void MultiplyDecays(const ChunkData<A>& chunk, int64_t tokens) {
  const Tag<A> d;
  if (!chunk.by_feature) {
    chunk.begin[0] = chunk.decays[0];
    for (int64_t t = 1; t < tokens; ++t) chunk.begin[t] = chunk.begin[t - 1] * chunk.decays[t];
    chunk.end[tokens - 1] = A{1};
    for (int64_t t = tokens - 1; t > 0; --t) chunk.end[t - 1] = chunk.end[t] * chunk.decays[t];
    // Between each pair of tokens: a row from the row before.
    for (int64_t t = 0; t < tokens; ++t) {
      A* const row = chunk.pairs + t * kScoreStride<A>;
      if (t > 0) MultiplyRow(row - kScoreStride<A>, chunk.decays + t, true, PackedColumns<A>(t), row);
      row[t] = A{1};
    }
    return;
  }
  const int64_t n = chunk.stride;
  std::copy_n(chunk.decays, n, chunk.begin);
  for (int64_t t = 1; t < tokens; ++t) {
    MultiplyRow(chunk.begin + (t - 1) * n, chunk.decays + t * n, false, n, chunk.begin + t * n);
  }
  for (int64_t i = 0; i < n; i += kLanes<A>) hn::Store(hn::Set(d, A{1}), d, chunk.end + (tokens - 1) * n + i);
  for (int64_t t = tokens - 1; t > 0; --t) {
    MultiplyRow(chunk.end + t * n, chunk.decays + t * n, false, n, chunk.end + (t - 1) * n);
  }
}

// The keys of a chunk: tiles of features with the decays to the chunk's end, and transposed panels for scores.
template <typename A>
HWY_NOINLINE void PackKeys(const ChunkData<A>& chunk, int64_t tokens, bool decay, bool scores) {
  const int64_t per_token = chunk.by_feature ? chunk.stride : 1;
  for (int64_t t = 0; t < tokens; ++t) {
    const A* row = chunk.keys + t * chunk.stride;
    if (decay) {
      MultiplyRow(row, chunk.end + t * per_token, !chunk.by_feature, chunk.stride, chunk.row);
      row = chunk.row;
    }
    for (int64_t f = 0; f < chunk.features; f += kTileRows) {
      // Compiled to moves of vectors, as std::copy_n is not.
      std::memcpy(chunk.to_end + f * kChunkRows + t * kTileRows, row + f, kTileRows * sizeof(A));
    }
  }
  if (!scores) return;
  if (chunk.by_feature) {
    std::fill_n(chunk.transposed, chunk.features * PackedColumns<A>(tokens), A{0});
  } else {
    PackPanels(chunk.keys, chunk.features, tokens, int64_t{1}, chunk.stride, chunk.transposed);
  }
}

// Of decays by feature: the keys before the tile at `first` carry the decays up to its first token.
template <typename A>
HWY_NOINLINE void AdvanceKeys(const ChunkData<A>& chunk, int64_t tokens, int64_t first) {
  if (first == 0) return;
  const Tag<A> d;
  const int64_t n = chunk.stride, before = first - kTileRows;
  A* const product = chunk.row;  // of the decays of tokens (t, first]
  std::copy_n(chunk.decays + first * n, n, product);
  for (int64_t t = first - 1; t >= before; --t) {
    const int64_t column = t / kPanel<A> * kPanel<A>, width = PanelWidth<A>(column, tokens);
    A* const to = chunk.transposed + column * chunk.features + t - column;
    for (int64_t f = 0; f < chunk.features; ++f) to[f * width] = chunk.keys[t * n + f] * product[f];
    if (t > before) MultiplyRow(product, chunk.decays + t * n, false, n, product);
  }
  // `product` is now that of the decays of (before, first], for the keys before.
  for (int64_t column = 0; column < before; column += kPanel<A>) {
    const int64_t width = PanelWidth<A>(column, tokens), filled = std::min(width, before - column);
    A* const panel = chunk.transposed + column * chunk.features;
    for (int64_t f = 0; f < chunk.features; ++f) {
      const auto factor = hn::Set(d, product[f]);
      A* const row = panel + f * width;
      ForEachVector(d, filled, [&](auto lanes, int64_t i) HWY_ATTR {
        lanes.Store(hn::Mul(lanes.Load(d, row + i), factor), d, row + i);
      });
    }
  }
}

// The sum of a * b over n, whole vectors.
template <typename A>
HWY_INLINE A Dot(const A* a, const A* b, int64_t n) {
  const Tag<A> d;
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes<A>) sum = hn::MulAdd(hn::Load(d, a + i), hn::Load(d, b + i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

template <typename A>
struct FromZero {
  HWY_INLINE hn::Vec<Tag<A>> operator()(int, int) const { return hn::Zero(Tag<A>()); }
};

// Vectors of rows that are `stride` apart.
template <typename A>
struct FromRows {
  const A* from;
  int64_t stride;
  HWY_INLINE hn::Vec<Tag<A>> operator()(int r, int v) const {
    return hn::LoadU(Tag<A>(), from + r * stride + v * kLanes<A>);
  }
};
template <typename A>
struct FromRowsTimes {
  const A* from;
  int64_t stride;
  const A* factor;
  int64_t factor_stride;
  HWY_INLINE hn::Vec<Tag<A>> operator()(int r, int v) const {
    const Tag<A> d;
    return hn::Mul(hn::LoadU(d, from + r * stride + v * kLanes<A>), hn::Set(d, factor[r * factor_stride]));
  }
};
template <typename A>
struct ToRows {
  A* to;
  int64_t stride;
  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<A>> (&sums)[kVectors]) const {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], Tag<A>(), to + r * stride + v * kLanes<A>);
  }
};
// to = beta * (to - factor * sum), where the factors of rows are `step` apart.
template <typename A>
struct ToCorrections {
  A* to;
  int64_t stride;
  const A *beta, *factor;
  int64_t step;
  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<A>> (&sums)[kVectors]) const {
    const Tag<A> d;
    const auto beta_r = hn::Set(d, beta[r]), factor_r = hn::Set(d, factor[r * step]);
    for (int v = 0; v < kVectors; ++v) {
      A* const at = to + r * stride + v * kLanes<A>;
      hn::StoreU(hn::Mul(beta_r, hn::NegMulAdd(factor_r, sums[v], hn::LoadU(d, at))), d, at);
    }
  }
};

// Calls product(Int<vectors>, column) for the panels of [0, end).
template <typename A, class Product>
HWY_INLINE void ForPanels(int64_t columns, int64_t end, const Product& product) {
  for (int64_t column = 0; column < end; column += kPanel<A>) {
    if (PanelWidth<A>(column, columns) == kPanel<A>) {
      product(Int<2>(), column);
    } else {
      product(Int<1>(), column);
    }
  }
}

// The pairs within a tile, of decays by feature.
template <typename A>
HWY_NOINLINE void ScoreWithinTile(const ChunkData<A>& chunk, int64_t first, int64_t rows, const A* from) {
  const int64_t n = chunk.stride;
  for (int64_t j = 0; j < rows; ++j) {
    std::copy_n(chunk.keys + (first + j) * n, n, chunk.row);
    for (int64_t r = j; r < rows; ++r) {
      if (r > j) MultiplyRow(chunk.row, chunk.decays + (first + r) * n, false, n, chunk.row);
      chunk.scores[(first + r) * kScoreStride<A> + first + j] = Dot(from + r * n, chunk.row, n);
    }
  }
}

// Packs the rows of a block in tiles.
template <typename A>
HWY_NOINLINE void PackBlock(const ChunkData<A>& chunk, int64_t rows, const A* from) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    PackTile(from + r * chunk.stride, std::min<int64_t>(kTileRows, rows - r), chunk.stride, chunk.features, kTileRows,
             chunk.tiles + r * chunk.features);
  }
}

// Of decays by feature: the rows of a tile times the decays between `begin` and each row, as the tile.
template <typename A>
HWY_NOINLINE void PackDecayed(const ChunkData<A>& chunk, int64_t first, int64_t rows, const A* from, bool from_begin) {
  const int64_t n = chunk.stride;
  if (from_begin) {
    for (int64_t r = 0; r < rows; ++r) {
      MultiplyRow(from + r * n, chunk.begin + (first + r) * n, false, n, chunk.scaled + r * n);
    }
  } else {
    std::copy_n(from, n, chunk.scaled);
    for (int64_t i = 0; i < n; ++i) chunk.row[i] = A{1};
    for (int64_t r = 1; r < rows; ++r) {
      MultiplyRow(chunk.row, chunk.decays + (first + r) * n, false, n, chunk.row);
      MultiplyRow(from + r * n, chunk.row, false, n, chunk.scaled + r * n);
    }
  }
  PackBlock(chunk, rows, chunk.scaled);
}

// Scores of the rows [first, first + rows) of a chunk, for the tokens up to each row's own, 0 behind them within its
// tile. `from` are the rows themselves. Leaves them packed, times the decays from the chunk's begin if those are by
// feature.
template <typename A>
HWY_NOINLINE void ScoreBlock(const ChunkData<A>& chunk, int64_t tokens, int64_t first, int64_t rows, const A* from,
                             bool decay) {
  if (!chunk.by_feature) {
    PackBlock(chunk, rows, from);
  } else if (first > 0) {
    PackDecayed(chunk, first, rows, from, false);
  }
  for (int64_t tile = 0; tile < rows; tile += kTileRows) {
    const int64_t begin = first + tile, height = std::min<int64_t>(kTileRows, rows - tile);
    A* const scores = chunk.scores + begin * kScoreStride<A>;
    ForPanels<A>(tokens, chunk.by_feature ? begin : begin + height, [&](auto vectors, int64_t column) HWY_ATTR {
      constexpr int kVectors = decltype(vectors)::value;
      GemmTile<kTileRows, kVectors, 1, kTileRows>(chunk.features, chunk.tiles + tile * chunk.features,
                                                  chunk.transposed + column * chunk.features, FromZero<A>(),
                                                  ToRows<A>{scores + column, kScoreStride<A>});
    });
    for (int64_t r = 0; r < height; ++r) {
      A* const row = scores + r * kScoreStride<A>;
      if (!chunk.by_feature && decay) {
        MultiplyRow(row, chunk.pairs + (begin + r) * kScoreStride<A>, false, PackedColumns<A>(begin + r + 1), row);
      }
      std::fill(row + begin + r + 1, row + begin + kTileRows, A{0});
    }
  }
  if (!chunk.by_feature) return;
  ScoreWithinTile(chunk, first, rows, from);
  PackDecayed(chunk, first, rows, from, true);
}

// The factors of the rows of packed tiles that their decays from the chunk's begin leave: one number a row, or 1.
template <typename A>
struct RowFactors {
  const A* factors;
  int64_t step;
};
template <typename A>
HWY_INLINE RowFactors<A> FactorsFromBegin(const ChunkData<A>& chunk, int64_t first, bool decay) {
  if (decay && !chunk.by_feature) return {chunk.begin + first, 1};
  return {chunk.one, 0};
}

// Solves (I - L) U = U for a tile of U in the registers: `scores` of L, row r of which has r of them.
template <int kVectors, typename A>
HWY_INLINE void Substitute(const A* scores, A* u) {
  const Tag<A> d;
  hn::Vec<Tag<A>> rows[kTileRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) rows[r][v] = hn::Load(d, u + (r * kVectors + v) * kLanes<A>);
  }
#pragma GCC unroll 16
  for (int j = 0; j < kTileRows; ++j) {
#pragma GCC unroll 16
    for (int r = j + 1; r < kTileRows; ++r) {
      const auto score = hn::Set(d, scores[r * kScoreStride<A> + j]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) rows[r][v] = hn::MulAdd(score, rows[j][v], rows[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 1; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) hn::Store(rows[r][v], d, u + (r * kVectors + v) * kLanes<A>);
  }
}

// U of a block: its V is replaced.
template <typename A>
HWY_NOINLINE void SolveBlock(const ChunkData<A>& chunk, int64_t tokens, int64_t first, int64_t rows, bool decay) {
  ScoreBlock(chunk, tokens, first, rows, chunk.keys + first * chunk.stride, decay);
  for (int64_t t = first; t < first + rows; ++t) {
    const A factor = -chunk.beta[t];
    A* const row = chunk.scores + t * kScoreStride<A>;
    MultiplyRow(row, &factor, true, PackedColumns<A>(t), row);
  }
  ForPanels<A>(chunk.columns, chunk.columns, [&](auto vectors, int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    A* const panel = chunk.u + column * kChunkRows;
    for (int64_t tile = 0; tile < rows; tile += kTileRows) {
      const int64_t begin = first + tile;
      A* const u = panel + begin * kWidth;
      const A* const scores = chunk.scores + begin * kScoreStride<A>;
      const auto factors = FactorsFromBegin(chunk, begin, decay);
      GemmTile<kTileRows, kVectors, 1, kTileRows>(
          chunk.features, chunk.tiles + tile * chunk.features, chunk.states[0] + column * TiledRows(chunk.features),
          FromZero<A>(), ToCorrections<A>{u, kWidth, chunk.beta + begin, factors.factors, factors.step});
      GemmTile<kTileRows, kVectors, kScoreStride<A>, 1>(begin, scores, panel, FromRows<A>{u, kWidth},
                                                        ToRows<A>{u, kWidth});
      Substitute<kVectors>(scores + begin, u);
    }
  });
}

// chunk.out = the outputs of the packed queries of a block, from the state alone or, with `scores`, from the tokens of
// the chunk as well.
template <typename A>
HWY_NOINLINE void OutputBlock(const ChunkData<A>& chunk, int64_t first, int64_t rows, bool decay, bool scores) {
  ForPanels<A>(chunk.columns, chunk.columns, [&](auto vectors, int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t tile = 0; tile < rows; tile += kTileRows) {
      const int64_t begin = first + tile;
      A* const out = chunk.out + tile * chunk.packed + column;
      GemmTile<kTileRows, kVectors, 1, kTileRows>(chunk.features, chunk.tiles + tile * chunk.features,
                                                  chunk.states[0] + column * TiledRows(chunk.features), FromZero<A>(),
                                                  ToRows<A>{out, chunk.packed});
      if (!scores) continue;
      const auto factors = FactorsFromBegin(chunk, begin, decay);
      GemmTile<kTileRows, kVectors, kScoreStride<A>, 1>(
          std::min(first + rows, begin + kTileRows), chunk.scores + begin * kScoreStride<A>,
          chunk.u + column * kChunkRows, FromRowsTimes<A>{out, chunk.packed, factors.factors, factors.step},
          ToRows<A>{out, chunk.packed});
    }
  });
}

// The state after the chunk, into states[1].
template <typename A>
HWY_NOINLINE void UpdateStates(const ChunkData<A>& chunk, int64_t tokens, bool decay) {
  const A* const whole = decay ? chunk.begin + (tokens - 1) * (chunk.by_feature ? chunk.stride : 1) : chunk.one;
  const int64_t step = decay && chunk.by_feature ? 1 : 0;
  for (int64_t f = 0; f < chunk.features; f += kTileRows) {
    const A* const keys = chunk.to_end + f * kChunkRows;
    ForPanels<A>(chunk.columns, chunk.columns, [&](auto vectors, int64_t column) HWY_ATTR {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int64_t kWidth = kVectors * kLanes<A>;
      const int64_t offset = column * TiledRows(chunk.features) + f * kWidth;
      GemmTile<kTileRows, kVectors, 1, kTileRows>(
          tokens, keys, chunk.u + column * kChunkRows,
          FromRowsTimes<A>{chunk.states[0] + offset, kWidth, whole + f * step, step},
          ToRows<A>{chunk.states[1] + offset, kWidth});
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
