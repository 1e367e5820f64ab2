// Attention for many queries: one block of queries against all keys that any of them keeps, on one core
// (FlashAttention-2, Dao 2023, arXiv:2307.08691, algorithm 1).
//
// RunAttention goes through the keys in blocks (256 keys in float32). It packs a block's keys and values once; then
// every tile of rows of the block of queries goes through these steps, which each matmul backend arranges in its own
// order (FmaKeyBlock, DotKeyBlock, AmxKeyBlock):
//   1. ComputeScores: the product of queries and keys, with the scale, in L1; FinishScores: score modifiers
//      (modifiers/) and the max of each row;
//   2. UpdateTileMaxima: the running maxima m of all rows of the tile;
//   3. weights p_j = exp(s_j - m) and their sums;
//   4. output = output * exp(old m - new m) + p V.
// FinishRows divides the outputs by the sums. Requested weights are stored in step 3 and multiplied by
// exp(m at the time - final m) / sum as soon as the rows have met all keys, while they are still in L2. Statistics of
// weights (statistics/) are computed at the same place, and their weights dropped.
//
// Products is the matmul backend's part: FmaProducts (backends/fma-inl.h, every target) or SplitProducts
// (backends/bf16-inl.h). It sets the rows of a tile, the keys of a block and the number of tiles in flight.
//
// Key blocks and panels begin at multiples of their size from key 0, whatever the block of queries: the order of a
// row's additions depends on that row alone, so results have the same bits for any number of threads.
//
// Cost: 4 * head_dim operations per score in the products, and about 15 vector operations per vector of scores.
// Scratch: packed queries and outputs of the block of queries, one packed block of keys and of values, one tile of
// scores. Only requested weights and statistics need scratch that grows with the number of keys.

#if defined(HEADWISE_ATTENTION_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_KERNEL_INL_H_
#undef HEADWISE_ATTENTION_KERNEL_INL_H_
#else
#define HEADWISE_ATTENTION_KERNEL_INL_H_
#endif

#include <algorithm>

#include "attention/divide_first-inl.h"
#include "attention/kernel.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "attention/statistics/statistics-inl.h"
#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Up to kRows rows: the union [low, high) and the intersection [all_low, all_high) of their windows.
template <int kRows>
struct Tile {
  int64_t first_row;
  int rows, height;  // height: rows that are computed
  int64_t low, high, all_low, all_high;
  Row row[kRows];
};

// The keys [from, to) of the current block, counted from its first, of which a tile keeps some; and the modifiers of
// their scores.
struct TileKeys {
  int64_t from = 0, to = 0;  // from: a multiple of a panel
  ScoreModifiers modifiers = 0;
  bool fused = false;  // the matmul backend applies FusedModifiers
  bool empty() const { return from >= to; }
};

// A tile between its two products, and the index of its score buffer.
template <int kRows>
struct Stage {
  const Tile<kRows>* tile = nullptr;
  TileKeys keys;
  int buffer = 0;
  explicit operator bool() const { return tile != nullptr; }
};

template <class Products>
struct AttentionScratch {
  using Stored = typename Products::Stored;
  using T = Accumulator<Stored>;

  AttentionScratch(Arena& arena, const AttentionArgs<Stored>& args, int64_t rows)
      : tile_count((rows + Products::kRows - 1) / Products::kRows),
        padded_rows(tile_count * Products::kRows),
        value_width(Products::ValueWidth(args.value.shape[3])),
        blocks(args.statistics || (args.weights && args.key.shape[2] > Products::kKeys)
                   ? (args.key.shape[2] + Products::kKeys - 1) / Products::kKeys
                   : 0),
        tiles(arena.Allocate<Tile<Products::kRows>>(tile_count)),
        output(arena.Allocate<T>(padded_rows, value_width)),
        max(arena.Allocate<T>(padded_rows)),
        sum(arena.Allocate<T>(padded_rows)),
        scores(arena.Allocate<T>(Products::kStages * Products::kRows * Products::kStride)),
        shift(arena.Allocate<T>(Products::kStages * Products::kRows)),
        rescale(arena.Allocate<T>(Products::kStages * Products::kRows)),
        block_max(arena.Allocate<T>(padded_rows, blocks)),
        staging_width(StagingWidth(args)),
        staging(arena.Allocate<T>(padded_rows, staging_width)),
        statistics(arena, args.statistics, args.key.shape[2]) {}

  // Longer rows would be evicted from L2 before they are finished. Weights of 16-bit types are always staged, because
  // they are rounded once.
  static constexpr int64_t kMaxStagedKeys = 8192 / sizeof(T);

  int64_t StagingWidth(const AttentionArgs<Stored>& args) const {
    const int64_t keys = args.key.shape[2];
    constexpr int64_t kLine = 64 / sizeof(T);
    // Whole cache lines, and one more, so that rows do not fall on the same cache sets.
    if (args.statistics) return (keys + kLine - 1) / kLine * kLine + kLine;
    return blocks > 0 && (kIs16Bit<Stored> || keys <= kMaxStagedKeys) ? keys : 0;
  }

  int64_t tile_count, padded_rows, value_width;
  int64_t blocks;  // key blocks, if weights are requested and there are several, or statistics are; else 0
  Tile<Products::kRows>* tiles;
  T* output;     // [padded_rows][value_width], not yet divided by the sum
  T* max;        // [padded_rows] running maxima of the scores
  T* sum;        // [padded_rows] running sums of exp(score - max)
  T* scores;     // [kStages][kRows][kStride], then weights
  T* shift;      // [kStages][kRows]: max of each row of the tile, then (UpdateTileMaxima) the subtrahend of its scores
  T* rescale;    // [kStages][kRows] factors for the outputs of the tile
  T* block_max;  // [padded_rows][blocks]: the running max that a block's weights were computed with; -inf: it has none
  int64_t staging_width;
  T* staging;  // [padded_rows][staging_width]: unfinished weights; if empty, they are in the result array
  StatisticsScratch<T> statistics;
};

template <class Products, typename T>
std::size_t AttentionScratchBytes(const AttentionArgs<T>& args, int64_t rows) {
  Arena measure(nullptr);
  const AttentionScratch<Products> scratch(measure, args, rows);
  Products(measure, args, AttentionBlock(), scratch.padded_rows);
  return measure.used();
}

// One block of queries at work.
template <class Products>
struct AttentionRun {
  using Stored = typename Products::Stored;  // element type of the arrays
  using T = Accumulator<Stored>;
  static constexpr int kRows = Products::kRows;
  using Tile = HWY_NAMESPACE::Tile<kRows>;
  using Stage = HWY_NAMESPACE::Stage<kRows>;

  AttentionRun(const AttentionArgs<Stored>& arguments, const AttentionBlock& queries, std::byte* memory)
      : args(arguments),
        block(queries),
        keys(KeysOf(args, block.batch, block.query_begin, block.query_end)),
        modifiers(ModifiersOf(args.spec)),
        arena(memory),
        scratch(arena, args, (block.query_end - block.query_begin) * (args.query.shape[1] / args.key.shape[1])),
        products(arena, args, block, scratch.padded_rows) {}

  T* Scores(const Stage& stage, int r = 0) const {
    return scratch.scores + (stage.buffer * kRows + r) * Products::kStride;
  }
  T* Shift(const Stage& stage) const { return scratch.shift + stage.buffer * kRows; }
  T* Rescale(const Stage& stage) const { return scratch.rescale + stage.buffer * kRows; }
  T* Max(const Stage& stage) const { return scratch.max + stage.tile->first_row; }
  T* Sum(const Stage& stage) const { return scratch.sum + stage.tile->first_row; }
  T* Output(const Stage& stage) const { return scratch.output + stage.tile->first_row * scratch.value_width; }

  Stored* Weights(const Row& row, int64_t key) const { return args.weights.at(block.batch, row.head, row.query, key); }
  T* Staging(int64_t padded_row, int64_t key) const {
    return scratch.staging + padded_row * scratch.staging_width + key;
  }
  T* BlockMax(int64_t padded_row) const { return scratch.block_max + padded_row * scratch.blocks; }

  const AttentionArgs<Stored>& args;
  const AttentionBlock block;
  const KeyRange keys;
  const ScoreModifiers modifiers;
  Arena arena;
  const AttentionScratch<Products> scratch;
  Products products;
};

// Prefetches keys and values [from, to) of the first key block: short sequences often come from memory, and this block
// is all of them.
template <class Products>
void PrefetchKeys(const AttentionRun<Products>& run, int64_t from, int64_t to) {
  using Stored = typename Products::Stored;
  constexpr int64_t kLine = 64 / sizeof(Stored);
  const auto &key = run.args.key, &value = run.args.value;
  if (!key || !value) return;  // stored in a type of their own
  to = std::min<int64_t>({to, Products::kKeys, run.keys.end - run.keys.begin});
  for (int64_t j = from; j < to; ++j) {
    const Stored* key_row = key.at(run.block.batch, run.block.kv_head, run.keys.begin + j);
    const Stored* value_row = value.at(run.block.batch, run.block.kv_head, run.keys.begin + j);
    for (int64_t i = 0; i < key.shape[3]; i += kLine) hwy::Prefetch(key_row + i);
    for (int64_t i = 0; i < value.shape[3]; i += kLine) hwy::Prefetch(value_row + i);
  }
}

// Divides the rows (heads of the group, times queries) into tiles, packs the queries and sets the softmax's start: the
// sinks, or nothing.
template <class Products>
void StartRows(AttentionRun<Products>& run) {
  using T = typename AttentionRun<Products>::T;
  constexpr int kRows = Products::kRows;
  const auto& args = run.args;
  const auto& scratch = run.scratch;
  const int64_t queries = run.block.query_end - run.block.query_begin, group = args.query.shape[1] / args.key.shape[1];
  std::fill_n(scratch.output, scratch.padded_rows * scratch.value_width, T{0});
  std::fill_n(scratch.rescale, Products::kStages * kRows, T{1});
  std::fill_n(scratch.max, scratch.padded_rows, kMinusInf<T>);
  std::fill_n(scratch.sum, scratch.padded_rows, T{0});
  std::fill_n(scratch.block_max, scratch.padded_rows * scratch.blocks, kMinusInf<T>);
  int64_t member = 0, query = 0;  // head of the group, query of the block
  for (int64_t t = 0; t < scratch.tile_count; ++t) {
    Tile<kRows>& tile = scratch.tiles[t];
    tile.first_row = t * kRows;
    tile.rows = static_cast<int>(std::min<int64_t>(kRows, queries * group - tile.first_row));
    tile.height = Products::Height(tile.rows);
    tile.low = tile.all_high = args.key.shape[2], tile.high = tile.all_low = 0;
    for (int r = 0; r < tile.rows; ++r) {
      const Row& row = tile.row[r] = MakeRow(args, run.block.kv_head * group + member, run.block.query_begin + query);
      if (row.low < row.high) tile.low = std::min(tile.low, row.low), tile.high = std::max(tile.high, row.high);
      tile.all_low = std::max(tile.all_low, row.low), tile.all_high = std::min(tile.all_high, row.high);
      if (args.spec.sinks && args.spec.sinks[row.head] != kMinusInf<T>) {
        scratch.max[tile.first_row + r] = args.spec.sinks[row.head];
        scratch.sum[tile.first_row + r] = SinkTerm(args.spec.sinks[row.head]);
      }
      if (++query == queries) query = 0, ++member;
    }
    PrefetchKeys(run, tile.first_row, tile.first_row + kRows);
    run.products.PackQueries(tile);
  }
}

// The keys of block [begin, end) that the tile needs, by windows and masks.
template <class Products>
TileKeys KeysOfTile(const AttentionRun<Products>& run, const Tile<Products::kRows>& tile, int64_t begin, int64_t end) {
  using T = typename AttentionRun<Products>::T;
  const int64_t low = std::max(tile.low, begin), high = std::min(tile.high, end);
  TileKeys keys;
  if (low < high) keys.from = (low - begin) / kPanel<T> * kPanel<T>, keys.to = high - begin;
  keys.modifiers = run.modifiers;
  if (run.modifiers & kKeep) {
    bool all = true;
    for (const auto& keep : run.args.spec.keep) {
      if (keys.empty()) break;
      const KeptKeys kept = KeptByMask<T>(keep, run.block.batch, tile.row, tile.rows, begin, keys.from, keys.to);
      keys.from = kept.from, keys.to = kept.to, all &= kept.all;
    }
    if (all) keys.modifiers &= ~kKeep;
  }
  if ((run.modifiers & kBlocks) && !keys.empty()) {
    const KeptKeys kept =
        KeptByBlocks<T>(run.args.spec.blocks, run.block.batch, tile.row, tile.rows, begin, keys.from, keys.to);
    keys.from = kept.from, keys.to = kept.to;
    if (kept.all) keys.modifiers &= ~kBlocks;
  }
  if (keys.empty()) return keys;
  if (tile.all_low > begin + keys.from || tile.all_high < begin + keys.to) keys.modifiers |= kWindow;
  keys.fused = TakeFused(keys.modifiers);
  return keys;
}

// Whether weights are stored until their rows have met all keys.
template <typename S>
bool WeightsStay(const AttentionArgs<S>& args) {
  return args.weights || args.statistics;
}

// Stores row r's weights for the keys [begin, end) from its scores, which have become weights: final if this is the
// only key block, else to be multiplied by FinishWeights.
template <class Products>
void StoreWeights(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, int r, int64_t begin,
                  int64_t end) {
  using T = typename AttentionRun<Products>::T;
  const auto& scratch = run.scratch;
  const int64_t row = stage.tile->first_row + r, from = stage.keys.from, to = stage.keys.to;
  if (scratch.blocks > 0) {
    run.BlockMax(row)[begin / Products::kKeys - run.keys.begin / Products::kKeys] = scratch.max[row];
  }
  const T factor = scratch.blocks > 0 ? T{1} : Normaliser(scratch.sum[row]);
  const T zero = T{0} * factor;  // NaN if the row is NaN
  const auto store = [&](auto* weights) HWY_ATTR {
    FillRow(weights, from, zero);
    ScaleRow(run.Scores(stage, r) + from, to - from, factor, weights + from);
    FillRow(weights + to, end - begin - to, zero);
  };
  if (scratch.staging_width > 0) return store(run.Staging(row, begin));
  store(run.Weights(stage.tile->row[r], begin));
}

// Floating-point operations of both products of a row with `keys` keys.
template <typename T>
double RowWork(const AttentionArgs<T>& args, int64_t keys) {
  return 2.0 * static_cast<double>(keys) * static_cast<double>(args.query.shape[3] + args.value.shape[3]);
}

// The next tile from tile t on that keeps any key of the block [begin, end), and t past it; empty if there is none, or
// if the call has been interrupted.
template <class Products>
Stage<Products::kRows> NextTile(const AttentionRun<Products>& run, int64_t& t, int64_t begin, int64_t end,
                                int buffer = 0) {
  while (t < run.scratch.tile_count) {
    const Tile<Products::kRows>& tile = run.scratch.tiles[t++];
    const Stage<Products::kRows> stage{&tile, KeysOfTile(run, tile, begin, end), buffer};
    const int64_t keys = stage.keys.empty() ? 1 : stage.keys.to - stage.keys.from;
    if (Interrupted(RowWork(run.args, keys) * tile.rows)) return {};
    if (!stage.keys.empty()) return stage;
    if (!run.args.weights) continue;
    for (int r = 0; r < tile.rows; ++r) StoreWeights(run, stage, r, begin, end);
  }
  return {};
}

// The first product. `work`: vector work that the matmul backend interleaves with it.
template <class Products, class... Work>
void ComputeScores(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, int64_t begin,
                   Work&&... work) {
  run.products.Score(*stage.tile, stage.keys.from, stage.keys.to, begin, stage.keys.fused, run.Scores(stage),
                     run.Shift(stage), work...);
}

// Completes the backend's scores, applies the modifiers and leaves the max of each row in Shift(stage).
template <class Products>
void FinishScores(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, int64_t begin) {
  const auto& [tile, keys, buffer] = stage;
  run.products.FinishScores(*tile, keys.from, keys.to, begin, keys.fused, run.Scores(stage), run.Shift(stage));
  if (keys.modifiers == 0) return;
  for (int r = 0; r < tile->rows; ++r) {
    ModifyRow(run.args, run.block.batch, tile->row[r], keys.modifiers, begin, keys.from, keys.to, run.Scores(stage, r));
    run.Shift(stage)[r] = MaxScore(run.Scores(stage, r), keys.from, keys.to);
  }
}

template <class Products, typename T = Accumulator<typename Products::Stored>>
void UpdateTileMaxima(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, T slack = T{0}) {
  UpdateMaxima(Products::kRows, run.Max(stage), run.Sum(stage), run.Shift(stage), run.Rescale(stage), slack);
}

// Applies dropout to row r's weights and prepares them for the second product.
template <class Products>
void PrepareWeights(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, int r, int64_t begin) {
  using T = typename AttentionRun<Products>::T;
  const auto& spec = run.args.spec;
  const auto& keys = stage.keys;
  if (spec.dropout_keep) {
    const Row& row = stage.tile->row[r];
    ApplyDropout(spec.dropout_keep.at(run.block.batch, row.head, row.query, begin), spec.dropout_keep.stride[3],
                 static_cast<T>(spec.dropout_scale), keys.from, keys.to, run.Scores(stage, r));
  }
  run.products.PrepareWeights(r, keys.from, keys.to, run.Scores(stage, r), stage.buffer);
}

// Row r's scores become weights; the row's sum follows.
template <class Products>
HWY_INLINE void ComputeWeights(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage, int r,
                               int64_t begin, int64_t end) {
  run.Sum(stage)[r] += Exponentials(run.Scores(stage, r), stage.keys.from, stage.keys.to, run.Shift(stage)[r]);
  if (WeightsStay(run.args)) StoreWeights(run, stage, r, begin, end);
  PrepareWeights(run, stage, r, begin);
}

// The second product.
template <class Products>
void AddValues(const AttentionRun<Products>& run, const Stage<Products::kRows>& stage) {
  run.products.AddValues(*stage.tile, stage.keys.from, stage.keys.to, run.Scores(stage), stage.buffer,
                         run.Rescale(stage), run.Output(stage));
}

// The factors that make stored exp(score - running max) of each key block exp(score - max) / sum.
template <class Products, typename T = Accumulator<typename Products::Stored>>
T* WeightFactors(const AttentionRun<Products>& run, int64_t padded_row) {
  const Tag<T> d;
  const int64_t blocks = (run.keys.end - 1) / Products::kKeys - run.keys.begin / Products::kKeys + 1;
  T* factors = run.BlockMax(padded_row);
  const auto max = hn::Set(d, run.scratch.max[padded_row]);
  const auto normaliser = hn::Set(d, Normaliser(run.scratch.sum[padded_row]));
  ForEachVector(d, blocks, [&](auto lanes, int64_t i) HWY_ATTR {
    const auto before = lanes.Load(d, factors + i);
    // After only scores of -inf the weights are 0, or NaN if the row is NaN, as its normaliser is.
    const auto none = hn::Eq(before, hn::Set(d, kMinusInf<T>));
    const auto grown = hn::IfThenZeroElse(none, AttentionExp(d, hn::Sub(before, max)));
    lanes.Store(hn::Mul(grown, normaliser), d, factors + i);
  });
  return factors;
}

// Stores the final weights of a row of several key blocks.
template <class Products>
void FinishWeights(const AttentionRun<Products>& run, const Row& row, int64_t padded_row) {
  using T = typename AttentionRun<Products>::T;
  const T* factors = WeightFactors(run, padded_row);
  ForKeyBlocks(Products::kKeys, run.keys, [&](int64_t begin, int64_t end) HWY_ATTR {
    auto* const weights = run.Weights(row, begin);
    const T factor = *factors++;
    if (run.scratch.staging_width > 0) {
      return ScaleRow(run.Staging(padded_row, begin), end - begin, factor, weights);
    }
    ScaleRow(weights, end - begin, factor, weights);
  });
}

// Outputs, lse and weights of all rows, once they have met all keys.
template <class Products>
void FinishRows(const AttentionRun<Products>& run) {
  using T = typename AttentionRun<Products>::T;
  const auto& args = run.args;
  const auto& scratch = run.scratch;
  for (int64_t t = 0; t < scratch.tile_count; ++t) {
    const Tile<Products::kRows>& tile = scratch.tiles[t];
    if (args.weights && Interrupted(static_cast<double>(tile.rows * args.key.shape[2]))) return;
    for (int r = 0; r < tile.rows; ++r) {
      const Row& row = tile.row[r];
      const int64_t padded_row = tile.first_row + r;
      const T sum = scratch.sum[padded_row];
      T* output = scratch.output + padded_row * scratch.value_width;
      T normaliser = Normaliser(sum);
      if (HWY_UNLIKELY(!AllFinite(output, scratch.value_width)) &&
          DivideFirst(args, run.block.batch, row, scratch.max[padded_row], output)) {
        normaliser = T{1};
      }
      ScaleRow(output, args.value.shape[3], normaliser, args.output.at(run.block.batch, row.head, row.query));
      if (args.lse) *args.lse.at(run.block.batch, row.head, row.query) = LogSumExp(scratch.max[padded_row], sum);
      if (!args.weights) continue;
      if (scratch.blocks > 0 && run.keys.begin < run.keys.end) FinishWeights(run, row, padded_row);
      // A NaN row is NaN throughout: its weights must not depend on the range of keys of the block of queries.
      const T zero = T{0} * Normaliser(sum);
      FillRow(run.Weights(row, 0), run.keys.begin, zero);
      FillRow(run.Weights(row, run.keys.end), args.key.shape[2] - run.keys.end, zero);
    }
  }
}

// The statistics of all rows' weights, in place of their array.
template <class Products>
void FinishStatistics(const AttentionRun<Products>& run) {
  const auto& args = run.args;
  const auto& scratch = run.scratch;
  RowStatistics rows(*args.statistics, scratch.statistics, run.block, run.keys, args.key.shape[2],
                     args.query.shape[1] / args.key.shape[1]);
  for (int64_t t = 0; t < scratch.tile_count; ++t) {
    const Tile<Products::kRows>& tile = scratch.tiles[t];
    if (Interrupted(20.0 * static_cast<double>(tile.rows * (run.keys.end - run.keys.begin)))) return;
    for (int r = 0; r < tile.rows; ++r) {
      const int64_t padded_row = tile.first_row + r;
      const auto* factors = run.keys.begin < run.keys.end ? WeightFactors(run, padded_row) : nullptr;
      rows.Add(tile.row[r], run.Staging(padded_row, 0), factors, Products::kKeys, Normaliser(scratch.sum[padded_row]));
    }
  }
  rows.AddColumns();
}

// Whether the block mask drops the keys [begin, end) for all rows. Requested weights are stored nevertheless.
template <class Products>
bool SkipsKeys(const AttentionRun<Products>& run, int64_t begin, int64_t end) {
  const auto& args = run.args;
  if (!args.spec.blocks || args.weights) return false;
  const int64_t group = args.query.shape[1] / args.key.shape[1];
  return !AnyKept(args.spec.blocks, run.block.batch, run.block.kv_head * group, group, run.block.query_begin,
                  run.block.query_end, begin, end);
}

// The driver. key_block(begin, end) takes all tiles through steps 1 to 4 for the packed keys [begin, end).
template <class Products, class KeyBlock>
void RunAttention(AttentionRun<Products>& run, const KeyBlock& key_block) {
  StartRows(run);
  ForKeyBlocks(Products::kKeys, run.keys, [&](int64_t begin, int64_t end) HWY_ATTR {
    if (Interrupted(RowWork(run.args, end - begin))) return;
    if (SkipsKeys(run, begin, end)) return;
    run.products.PackKeys(begin, end);
    run.products.PackValues(begin, end);
    key_block(begin, end);
  });
  FinishRows(run);
  if constexpr (!kIs16Bit<typename Products::Stored>) {
    if (run.args.statistics) FinishStatistics(run);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
