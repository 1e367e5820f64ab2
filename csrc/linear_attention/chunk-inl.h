// The products of a chunk of tokens, in the accumulator type A: one copy of this code for all element types that share
// it. With P_t the product of the decays from the chunk's begin to token t, and the state S before the chunk:
//
//   U = beta (V - (P * K) S - M U)   M_tj = sum_f k_tf (P_tf / P_jf) k_jf for j < t     (rules with betas; else U = V)
//   O = (P * Q) S + W U              W_tj = sum_f q_tf (P_tf / P_jf) k_jf for j <= t
//   S = P_C S + ((P_C / P) * K)^T U
//
// (Yang et al. 2024, arXiv:2406.06484 and 2412.06464). Tiles of kTileRows tokens go through all of it: U of a tile
// needs U of the tiles before, and is solved by substitution within the tile, as the recurrence does. Quotients of
// decays are never divided. Where a token has one decay, they are products of the decays in between, a row at a time.
// Where each feature has its own, a tile's keys before it carry the decays up to its first token, and its rows those
// from there on; pairs within a tile are summed one by one. So a decay near 0 neither overflows nor cancels.

#if defined(HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#undef HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#else
#define HEADWISE_LINEAR_ATTENTION_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/scratch.h"
#include "hwy/highway.h"
#include "linear_attention/kernel.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Rows that tiles of `rows` rows may write.
constexpr int64_t TiledRows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
constexpr int64_t kChunkRows = TiledRows(kMaxChunk);

// A cache line more than the tokens of a chunk and a tile, so that rows of a tile do not fall on the same cache sets.
template <typename A>
constexpr int kScoreStride = static_cast<int>((kChunkRows + kPanel<A> - 1) / kPanel<A> * kPanel<A> +
                                              64 / static_cast<int64_t>(sizeof(A)));

// The numbers of a chunk. Rows have `stride` features, those behind the last 0. Panels are packed as in
// matmul/pack-inl.h, of kChunkRows tokens (value columns) or of `features` rows (keys).
template <typename A>
struct ChunkData {
  int64_t features, columns;  // value columns, the column of sums of weights among them
  int64_t stride, packed;     // `features` and `columns` in whole vectors, features in whole tiles as well
  bool by_feature;            // each feature has its own decay
  A *keys, *transposed;       // [kChunkRows][stride], and panels [features][tokens]
  A *to_end, *tile;           // keys times decays to the chunk's end, in tiles of features; a tile of rows
  A *u, *out, *row;           // panels [kChunkRows][columns]; [kTileRows][packed]; [max(packed, stride)]
  A *scores, *pairs;          // [kChunkRows][kScoreStride]
  A *decays, *begin, *end;    // [kChunkRows][stride], or one number a token: the decays, and their products
  A *queries, *scaled;        // [kTileRows][stride]
  A* states[2]{};             // panels [TiledRows(features)][columns]: before and after the chunk
  A* beta;                    // [kChunkRows]

  HWY_NOINLINE ChunkData(int64_t feature_count, int64_t column_count, bool decays_by_feature, std::byte* memory,
                         std::size_t* used)
      : features(feature_count), columns(column_count), by_feature(decays_by_feature) {
    stride = PackedColumns<A>(TiledRows(features));
    packed = std::max<int64_t>(kLanes<A>, PackedColumns<A>(columns));
    const int64_t per_token = by_feature ? stride : 1;
    Arena arena(memory);
    keys = arena.Allocate<A>(kChunkRows, stride);
    transposed = arena.Allocate<A>(PackedColumns<A>(kChunkRows) + kPanel<A>, features);
    to_end = arena.Allocate<A>(kChunkRows, TiledRows(features));
    tile = arena.Allocate<A>(kTileRows, features);
    u = arena.Allocate<A>(kChunkRows, packed);
    out = arena.Allocate<A>(kTileRows, packed);
    row = arena.Allocate<A>(std::max(packed, stride));
    scores = arena.Allocate<A>(kChunkRows, kScoreStride<A>);
    pairs = arena.Allocate<A>(kChunkRows, kScoreStride<A>);
    decays = arena.Allocate<A>(kChunkRows, per_token);
    begin = arena.Allocate<A>(kChunkRows, per_token);
    end = arena.Allocate<A>(kChunkRows, per_token);
    queries = arena.Allocate<A>(kTileRows, stride);
    scaled = arena.Allocate<A>(kTileRows, stride);
    for (A*& state : states) state = arena.Allocate<A>(TiledRows(features), packed);
    beta = arena.Allocate<A>(kChunkRows);
    if (used) *used = arena.used();
  }
};

// to[0, n) = a * b or, with one number b, a * b[0]; whole vectors.
template <typename A>
HWY_INLINE void MultiplyRow(const A* a, const A* b, bool one, int64_t n, A* to) {
  const Tag<A> d;
  const auto all = hn::Set(d, b[0]);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    hn::Store(hn::Mul(hn::Load(d, a + i), one ? all : hn::Load(d, b + i)), d, to + i);
  }
}

// A row of value columns into panels of `rows` rows, and back.
template <typename A>
HWY_INLINE void ToPanels(const A* row, int64_t r, int64_t rows, int64_t columns, A* panels) {
  const Tag<A> d;
  for (int64_t c = 0; c < columns; c += kLanes<A>) {
    const int64_t column = c / kPanel<A> * kPanel<A>;
    hn::Store(hn::Load(d, row + c), d, panels + column * rows + r * PanelWidth<A>(column, columns) + c - column);
  }
}
template <typename A>
HWY_INLINE void FromPanels(const A* panels, int64_t r, int64_t rows, int64_t columns, A* row) {
  const Tag<A> d;
  for (int64_t c = 0; c < columns; c += kLanes<A>) {
    const int64_t column = c / kPanel<A> * kPanel<A>;
    hn::Store(hn::Load(d, panels + column * rows + r * PanelWidth<A>(column, columns) + c - column), d, row + c);
  }
}

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
      std::copy_n(row + f, kTileRows, chunk.to_end + f * kChunkRows + t * kTileRows);
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
template <typename A>
struct ToRowsTimes {
  A* to;
  int64_t stride;
  const A* factor;
  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<A>> (&sums)[kVectors]) const {
    const Tag<A> d;
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::Mul(sums[v], hn::Set(d, factor[r])), d, to + r * stride + v * kLanes<A>);
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

// Scores of the rows [first, first + rows) of a chunk, for the tokens up to each row's own, 0 behind them within the
// tile. `from` are the rows themselves.
template <typename A>
HWY_NOINLINE void ScoreTile(const ChunkData<A>& chunk, int64_t tokens, int64_t first, int64_t rows, const A* from,
                            bool decay) {
  A* const scores = chunk.scores + first * kScoreStride<A>;
  const int64_t n = chunk.stride, end = chunk.by_feature ? first : first + rows;
  if (chunk.by_feature) {
    // The decays from the tile's first token, exclusive, to each row.
    std::copy_n(from, n, chunk.scaled);
    for (int64_t i = 0; i < n; ++i) chunk.row[i] = A{1};
    for (int64_t r = 1; r < rows; ++r) {
      MultiplyRow(chunk.row, chunk.decays + (first + r) * n, false, n, chunk.row);
      MultiplyRow(from + r * n, chunk.row, false, n, chunk.scaled + r * n);
    }
    from = chunk.scaled;
  }
  if (end > 0) {
    PackTile(from, rows, n, chunk.features, kTileRows, chunk.tile);
    ForPanels<A>(tokens, end, [&](auto vectors, int64_t column) HWY_ATTR {
      constexpr int kVectors = decltype(vectors)::value;
      GemmTile<kTileRows, kVectors, 1, kTileRows>(chunk.features, chunk.tile,
                                                  chunk.transposed + column * chunk.features, FromZero<A>(),
                                                  ToRows<A>{scores + column, kScoreStride<A>});
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    A* const row = scores + r * kScoreStride<A>;
    if (!chunk.by_feature && decay) {
      MultiplyRow(row, chunk.pairs + (first + r) * kScoreStride<A>, false, PackedColumns<A>(first + r + 1), row);
    }
    std::fill(row + first + r + 1, row + first + rows, A{0});
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

// The rows times the decays from the chunk's begin, as a tile; times -1 if `minus`.
template <typename A>
HWY_NOINLINE void PackFromBegin(const ChunkData<A>& chunk, int64_t first, int64_t rows, const A* from, bool decay,
                                bool minus) {
  const int64_t n = chunk.stride;
  const A sign = minus ? A{-1} : A{1};
  if (decay || minus) {
    for (int64_t r = 0; r < rows; ++r) {
      A* const to = chunk.scaled + r * n;
      const A* row = from + r * n;
      if (decay) {
        MultiplyRow(row, chunk.begin + (first + r) * (chunk.by_feature ? n : 1), !chunk.by_feature, n, to);
        row = to;
      }
      if (minus) MultiplyRow(row, &sign, true, n, to);
    }
    from = chunk.scaled;
  }
  PackTile(from, rows, n, chunk.features, kTileRows, chunk.tile);
}

// U of a tile: V of the tile is replaced.
template <typename A>
HWY_NOINLINE void SolveTile(const ChunkData<A>& chunk, int64_t tokens, int64_t first, int64_t rows, bool decay) {
  const Tag<A> d;
  const A* const keys = chunk.keys + first * chunk.stride;
  ScoreTile(chunk, tokens, first, rows, keys, decay);
  if (chunk.by_feature) ScoreWithinTile(chunk, first, rows, keys);
  A* const scores = chunk.scores + first * kScoreStride<A>;
  for (int64_t r = 0; r < rows; ++r) {
    const A factor = -chunk.beta[first + r];
    MultiplyRow(scores + r * kScoreStride<A>, &factor, true, PackedColumns<A>(first + r), scores + r * kScoreStride<A>);
  }
  PackFromBegin(chunk, first, rows, keys, decay, true);
  ForPanels<A>(chunk.columns, chunk.columns, [&](auto vectors, int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    A* const panel = chunk.u + column * kChunkRows;
    A* const u = panel + first * kWidth;
    GemmTile<kTileRows, kVectors, 1, kTileRows>(chunk.features, chunk.tile,
                                                chunk.states[0] + column * TiledRows(chunk.features),
                                                FromRows<A>{u, kWidth}, ToRowsTimes<A>{u, kWidth, chunk.beta + first});
    GemmTile<kTileRows, kVectors, kScoreStride<A>, 1>(first, scores, panel, FromRows<A>{u, kWidth},
                                                      ToRows<A>{u, kWidth});
    for (int64_t r = 1; r < rows; ++r) {
      const A* const row = scores + r * kScoreStride<A> + first;
      for (int64_t c = 0; c < kWidth; c += kLanes<A>) {
        auto sum = hn::Load(d, u + r * kWidth + c);
        for (int64_t j = 0; j < r; ++j) sum = hn::MulAdd(hn::Set(d, row[j]), hn::Load(d, u + j * kWidth + c), sum);
        hn::Store(sum, d, u + r * kWidth + c);
      }
    }
  });
}

// chunk.out = the outputs of `rows` rows of queries, from the state alone or, with `scores`, from the tokens of the
// chunk as well.
template <typename A>
HWY_NOINLINE void OutputTile(const ChunkData<A>& chunk, int64_t first, int64_t rows, bool decay, bool scores) {
  PackFromBegin(chunk, first, rows, chunk.queries, decay, false);
  const A* const weights = chunk.scores + first * kScoreStride<A>;
  ForPanels<A>(chunk.columns, chunk.columns, [&](auto vectors, int64_t column) HWY_ATTR {
    constexpr int kVectors = decltype(vectors)::value;
    A* const out = chunk.out + column;
    GemmTile<kTileRows, kVectors, 1, kTileRows>(chunk.features, chunk.tile,
                                                chunk.states[0] + column * TiledRows(chunk.features), FromZero<A>(),
                                                ToRows<A>{out, chunk.packed});
    if (!scores) return;
    GemmTile<kTileRows, kVectors, kScoreStride<A>, 1>(first + rows, weights, chunk.u + column * kChunkRows,
                                                      FromRows<A>{out, chunk.packed}, ToRows<A>{out, chunk.packed});
  });
}

// The state after the chunk, into states[1].
template <typename A>
HWY_NOINLINE void UpdateStates(const ChunkData<A>& chunk, int64_t tokens, bool decay) {
  const A one{1};
  const A* const whole = decay ? chunk.begin + (tokens - 1) * (chunk.by_feature ? chunk.stride : 1) : &one;
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
