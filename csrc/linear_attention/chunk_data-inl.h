// The scratch of a chunk of tokens, and rows of value columns in its panels.

#if defined(HEADWISE_LINEAR_ATTENTION_CHUNK_DATA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_LINEAR_ATTENTION_CHUNK_DATA_INL_H_
#undef HEADWISE_LINEAR_ATTENTION_CHUNK_DATA_INL_H_
#else
#define HEADWISE_LINEAR_ATTENTION_CHUNK_DATA_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/scratch.h"
#include "hwy/highway.h"
#include "linear_attention/kernel.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"

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
  A *to_end, *tiles;          // keys times decays to the chunk's end, in tiles of features; rows of a block, in tiles
  A *u, *out, *row;           // panels [kChunkRows][columns]; [kChunkRows][packed]; [max(packed, stride)]
  A *scores, *pairs;          // [kChunkRows][kScoreStride]
  A *decays, *begin, *end;    // [kChunkRows][stride], or one number a token: the decays, and their products
  A *queries, *scaled;        // [kChunkRows][stride]; [kTileRows][stride]
  A* states[2]{};             // panels [TiledRows(features)][columns]: before and after the chunk
  A *beta, *one;              // [kChunkRows]; the number 1

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
    tiles = arena.Allocate<A>(kChunkRows, features);
    u = arena.Allocate<A>(kChunkRows, packed);
    out = arena.Allocate<A>(kChunkRows, packed);
    row = arena.Allocate<A>(std::max(packed, stride));
    scores = arena.Allocate<A>(kChunkRows, kScoreStride<A>);
    pairs = arena.Allocate<A>(kChunkRows, kScoreStride<A>);
    decays = arena.Allocate<A>(kChunkRows, per_token);
    begin = arena.Allocate<A>(kChunkRows, per_token);
    end = arena.Allocate<A>(kChunkRows, per_token);
    queries = arena.Allocate<A>(kChunkRows, stride);
    scaled = arena.Allocate<A>(kTileRows, stride);
    for (A*& state : states) state = arena.Allocate<A>(TiledRows(features), packed);
    beta = arena.Allocate<A>(kChunkRows);
    one = arena.Allocate<A>(1);
    if (memory) *one = A{1};
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

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
