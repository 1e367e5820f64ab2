// Many queries against all keys that any of them keeps: flash attention for one core.
//
// Keys go by in blocks (256 in float32). A block's keys and values are packed once, then every tile of rows of the
// block of queries
//   1. is multiplied with the keys: scores, which carry the scale, in L1, and the largest of each row;
//   2. changes and limits the scores where anything asks for it (scores-inl.h);
//   3. moves its rows' maxima m, all at once, and takes p_j = exp(s_j - m), sum p_j;
//   4. adds p V to its outputs, times exp(old m - new m).
// One division per output ends it. Weights, where they are wanted, are written as they stand in step 3, and multiplied
// with exp(m then - m in the end) / sum as soon as the rows have met all keys, while they still are in L2.
//
// Both products are the Products': attention_fma-inl.h on every target, attention_parts-inl.h in parts of bfloat16.
// They say how many rows a tile has, how many keys a block, and how many tiles are under way at once.
//
// Blocks of keys and panels begin at multiples of their size from key 0, whatever the block of queries: what a row adds
// up, and in which order, depends on that row alone, so that results are the same bits for any number of threads.
//
// Work: 4 * head_dim operations a score in the products, about 15 vector operations per vector of scores besides.
// Scratch: the packed queries and outputs of the block of queries, one packed block of keys and of values, one tile of
// scores; nothing grows with the number of keys, but with weights: one number for each row and block of keys, and rows
// of keys for weights that wait there.

#if defined(HEADWISE_ATTENTION_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_KERNEL_INL_H_
#undef HEADWISE_ATTENTION_KERNEL_INL_H_
#else
#define HEADWISE_ATTENTION_KERNEL_INL_H_
#endif

#include <algorithm>

#include "attention/kernel.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "base/scratch.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Up to kRows rows, and the keys that any and that all of them keep.
template <int kRows>
struct Tile {
  int64_t first_row;
  int rows, height;  // height: rows that are computed
  int64_t low, high, all_low, all_high;
  Row row[kRows];
};

template <class Products>
struct AttentionScratch {
  using Stored = typename Products::Stored;
  using T = Accumulator<Stored>;

  AttentionScratch(Arena& arena, const AttentionArgs<Stored>& args, int64_t rows)
      : tile_count((rows + Products::kRows - 1) / Products::kRows),
        padded_rows(tile_count * Products::kRows),
        value_width(Products::ValueWidth(args.value.shape[3])),
        blocks(args.weights && args.key.shape[2] > Products::kKeys ? (args.key.shape[2] - 1) / Products::kKeys + 1 : 0),
        tiles(arena.Allocate<Tile<Products::kRows>>(tile_count)),
        output(arena.Allocate<T>(padded_rows, value_width)),
        max(arena.Allocate<T>(padded_rows)),
        sum(arena.Allocate<T>(padded_rows)),
        scores(arena.Allocate<T>(Products::kStages * Products::kRows * Products::kStride)),
        shift(arena.Allocate<T>(Products::kStages * Products::kRows)),
        rescale(arena.Allocate<T>(Products::kStages * Products::kRows)),
        block_max(arena.Allocate<T>(padded_rows, blocks)),
        strip_width(blocks > 0 && (kIs16Bit<Stored> || args.key.shape[2] <= kMostStripKeys) ? args.key.shape[2] : 0),
        strip(arena.Allocate<T>(padded_rows, strip_width)) {}

  // Longer rows would leave L2 on the way; halves cannot wait in their own memory.
  static constexpr int64_t kMostStripKeys = 8192 / sizeof(T);

  int64_t tile_count, padded_rows, value_width;
  int64_t blocks;  // of keys, where weights have to wait for the last; else 0
  Tile<Products::kRows>* tiles;
  T* output;     // [padded_rows][value_width], not divided by the sum yet
  T* max;        // [padded_rows] of the scores so far
  T* sum;        // [padded_rows] of exp(score - max) so far
  T* scores;     // [kStages][kRows][kStride], then weights
  T* shift;      // [kStages][kRows]: largest of the tile's scores, then what to subtract from them
  T* rescale;    // [kStages][kRows] factors for the outputs of the tile
  T* block_max;  // [padded_rows][blocks]: max, when the weights of each block were taken
  int64_t strip_width;
  T* strip;  // [padded_rows][strip_width]: these weights; where it is empty they wait in their own memory
};

template <class Products, typename T>
std::size_t AttentionScratchBytes(const AttentionArgs<T>& args, int64_t rows) {
  Arena measure(nullptr);
  const AttentionScratch<Products> scratch(measure, args, rows);
  Products(measure, args, AttentionBlock(), scratch.padded_rows);
  return measure.used();
}

template <class Products>
class AttentionRun {
 public:
  using Stored = typename Products::Stored;  // what arrays hold
  using T = Accumulator<Stored>;
  static constexpr int kRows = Products::kRows;

  AttentionRun(const AttentionArgs<Stored>& args, const AttentionBlock& block, std::byte* memory)
      : args_(args),
        batch_(block.batch),
        kv_head_(block.kv_head),
        query_begin_(block.query_begin),
        queries_(block.query_end - block.query_begin),
        group_(args.query.shape[1] / args.key.shape[1]),
        rows_(queries_ * group_),
        head_dim_(args.query.shape[3]),
        value_dim_(args.value.shape[3]),
        keys_(KeysOf(args, block.batch, block.query_begin, block.query_end)),
        changes_(ChangesOf(args)),
        arena_(memory),
        scratch_(arena_, args, rows_),
        products_(arena_, args, block, scratch_.padded_rows) {}
  virtual ~AttentionRun() = default;

  void Run() {
    Begin();
    ForKeyBlocks(Products::kKeys, keys_, [this](int64_t begin, int64_t end) HWY_ATTR {
      products_.PackKeys(begin, end);
      products_.PackValues(begin, end);
      Online(begin, end);
    });
    Finish();
  }

 protected:
  // The keys of the current block, counted from its first, that a tile keeps any of.
  struct Part {
    int64_t from = 0, to = 0;  // from: a multiple of a panel
    Changes changes;
    bool alibi = false;  // straight after the product
    bool empty() const { return from >= to; }
  };

  // A tile between its two products, and which of the buffers it uses.
  struct Stage {
    const Tile<kRows>* tile = nullptr;
    Part part;
    int buffer = 0;
    explicit operator bool() const { return tile != nullptr; }
  };

  Part PartOf(const Tile<kRows>& tile, int64_t begin, int64_t end) const {
    const int64_t low = std::max(tile.low, begin), high = std::min(tile.high, end);
    Part part;
    if (low < high) part.from = (low - begin) / kPanel<T> * kPanel<T>, part.to = high - begin;
    part.changes = changes_;
    if (changes_.keep) {
      bool all = true;
      for (const auto& keep : args_.spec.keep) {
        if (part.empty()) break;
        const KeptKeys kept = KeptByMask<T>(keep, batch_, tile.row, tile.rows, begin, part.from, part.to);
        part.from = kept.from, part.to = kept.to, all &= kept.all;
      }
      part.changes.keep = !all;
    }
    if (part.empty()) return part;
    part.changes.limit = tile.all_low > begin + part.from || tile.all_high < begin + part.to;
    part.alibi = part.changes.alibi && !part.changes.softcap;
    part.changes.alibi &= !part.alibi;
    return part;
  }

  void Begin() const {
    const int64_t padded = scratch_.padded_rows;
    std::fill_n(scratch_.output, padded * scratch_.value_width, T{0});
    std::fill_n(scratch_.rescale, Products::kStages * kRows, T{1});
    std::fill_n(scratch_.max, padded, kMinusInf<T>);
    std::fill_n(scratch_.sum, padded, T{0});
    int64_t member = 0, query = 0;  // of the group, of the queries
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      Tile<kRows>& tile = scratch_.tiles[t];
      tile.first_row = t * kRows;
      tile.rows = static_cast<int>(std::min<int64_t>(kRows, rows_ - tile.first_row));
      tile.height = Products::Height(tile.rows);
      tile.low = tile.all_high = args_.key.shape[2], tile.high = tile.all_low = 0;
      for (int r = 0; r < tile.rows; ++r) {
        const Row& row = tile.row[r] = MakeRow(args_, kv_head_ * group_ + member, query_begin_ + query);
        if (row.low < row.high) tile.low = std::min(tile.low, row.low), tile.high = std::max(tile.high, row.high);
        tile.all_low = std::max(tile.all_low, row.low), tile.all_high = std::min(tile.all_high, row.high);
        if (args_.spec.sinks && args_.spec.sinks[row.head] != kMinusInf<T>) {
          scratch_.max[tile.first_row + r] = args_.spec.sinks[row.head];
          scratch_.sum[tile.first_row + r] = SinkTerm(args_.spec.sinks[row.head]);
        }
        if (++query == queries_) query = 0, ++member;
      }
      PrefetchKeys(tile.first_row, tile.first_row + kRows);
      products_.PackQueries(tile);
    }
  }

  // The first block's keys and values: of short sequences, which come from memory as often as not, they are all.
  void PrefetchKeys(int64_t from, int64_t to) const {
    constexpr int64_t kLine = 64 / sizeof(Stored);
    to = std::min<int64_t>({to, Products::kKeys, keys_.end - keys_.begin});
    for (int64_t j = from; j < to; ++j) {
      const Stored* key = args_.key.at(batch_, kv_head_, keys_.begin + j);
      const Stored* value = args_.value.at(batch_, kv_head_, keys_.begin + j);
      for (int64_t i = 0; i < head_dim_; i += kLine) hwy::Prefetch(key + i);
      for (int64_t i = 0; i < value_dim_; i += kLine) hwy::Prefetch(value + i);
    }
  }

  T* Scores(const Stage& stage, int r = 0) const {
    return scratch_.scores + (stage.buffer * kRows + r) * Products::kStride;
  }
  T* Shift(const Stage& stage) const { return scratch_.shift + stage.buffer * kRows; }
  T* Rescale(const Stage& stage) const { return scratch_.rescale + stage.buffer * kRows; }
  T* Output(const Stage& stage) const { return scratch_.output + stage.tile->first_row * scratch_.value_width; }

  Stored* WeightsOf(const Row& row, int64_t key) const { return args_.weights.at(batch_, row.head, row.query, key); }

  // A block of keys and its values, packed, meets all rows.
  virtual void Online(int64_t begin, int64_t end) = 0;

  // The next tile, from the t-th on, that keeps any of the block's keys.
  Stage Next(int64_t& t, int64_t begin, int64_t end, int buffer = 0) const {
    while (t < scratch_.tile_count) {
      const Tile<kRows>& tile = scratch_.tiles[t++];
      const Stage stage{&tile, PartOf(tile, begin, end), buffer};
      if (!stage.part.empty()) return stage;
      if (!args_.weights) continue;
      for (int r = 0; r < tile.rows; ++r) StoreWeights(stage, r, begin, end);
    }
    return {};
  }

  // `work`: what the Products may do meanwhile.
  template <class... Work>
  void Score(const Stage& stage, int64_t begin, Work&&... work) const {
    products_.Score(*stage.tile, stage.part.from, stage.part.to, begin, stage.part.alibi, Scores(stage), Shift(stage),
                    work...);
  }

  // What the product left becomes scores; the greatest of each row go to the shifts.
  void FinishScores(const Stage& stage, int64_t begin) const {
    const Tile<kRows>& tile = *stage.tile;
    const Part& part = stage.part;
    products_.FinishScores(tile, part.from, part.to, begin, part.alibi, Scores(stage), Shift(stage));
    if (!part.changes) return;
    for (int r = 0; r < tile.rows; ++r) {
      const ScoreRow<T> row(Scores(stage, r), begin, part.from, part.to);
      row.Change(args_, batch_, tile.row[r], part.changes);
      Shift(stage)[r] = row.Max();
    }
  }

  void MoveMaxima(const Stage& stage, T slack = T{0}) const {
    const int64_t first = stage.tile->first_row;
    HWY_NAMESPACE::MoveMaxima(kRows, scratch_.max + first, scratch_.sum + first, Shift(stage), Rescale(stage), slack);
  }

  void WeightsOfRow(const Stage& stage, int r, int64_t begin, int64_t end) const {
    const Part& part = stage.part;
    scratch_.sum[stage.tile->first_row + r] += Exponentials(Scores(stage, r), part.from, part.to, Shift(stage)[r]);
    if (args_.weights) StoreWeights(stage, r, begin, end);
    TakeWeights(stage, r, begin);
  }

  // Weights, which dropout still changes, on their way to the values.
  void TakeWeights(const Stage& stage, int r, int64_t begin) const {
    const Part& part = stage.part;
    if (args_.spec.dropout_keep) {
      const Row& row = stage.tile->row[r];
      DropWeights(args_.spec.dropout_keep.at(batch_, row.head, row.query, begin), args_.spec.dropout_keep.stride[3],
                  static_cast<T>(args_.spec.dropout_scale), part.from, part.to, Scores(stage, r));
    }
    products_.TakeWeights(r, part.from, part.to, Scores(stage, r), stage.buffer);
  }

  void AddValues(const Stage& stage) const {
    products_.AddValues(*stage.tile, stage.part.from, stage.part.to, Scores(stage), stage.buffer, Rescale(stage),
                        Output(stage));
  }

  // The row's weights for the keys [begin, end), from scores that have become weights: final if these are all keys,
  // else waiting for the factor that Finish finds.
  void StoreWeights(const Stage& stage, int r, int64_t begin, int64_t end) const {
    const int64_t row = stage.tile->first_row + r;
    if (scratch_.blocks > 0) BlockMax(row)[begin / Products::kKeys - keys_.begin / Products::kKeys] = scratch_.max[row];
    const Part& part = stage.part;
    const T factor = scratch_.blocks > 0 ? T{1} : Normaliser(scratch_.sum[row]);
    const T nothing = T{0} * factor;  // NaN where the row is
    const auto store = [&](auto* weights) HWY_ATTR {
      FillRow(weights, part.from, nothing);
      ScaleRow(Scores(stage, r) + part.from, part.to - part.from, factor, weights + part.from);
      FillRow(weights + part.to, end - begin - part.to, nothing);
    };
    if (scratch_.strip_width > 0) return store(Strip(row, begin));
    store(WeightsOf(stage.tile->row[r], begin));
  }

  T* Strip(int64_t row, int64_t key) const { return scratch_.strip + row * scratch_.strip_width + key; }

  // The largest score of a padded row up to each block of keys.
  T* BlockMax(int64_t row) const { return scratch_.block_max + row * scratch_.blocks; }

  // exp(score - max so far) of each block becomes exp(score - max) / sum.
  void FinishWeights(const Row& row, int64_t padded_row) const {
    const Tag<T> d;
    const int64_t blocks = (keys_.end - 1) / Products::kKeys - keys_.begin / Products::kKeys + 1;
    T* factors = BlockMax(padded_row);
    const auto max = hn::Set(d, scratch_.max[padded_row]);
    const auto normaliser = hn::Set(d, Normaliser(scratch_.sum[padded_row]));
    ForEachVector(d, blocks, [&](auto lanes, int64_t i) HWY_ATTR {
      const auto before = lanes.Load(d, factors + i);
      // Where nothing but -inf was seen the weights are 0, or NaN with the row.
      const auto nothing = hn::Eq(before, hn::Set(d, kMinusInf<T>));
      const auto grown = hn::IfThenElse(nothing, hn::Set(d, T{1}), AttentionExp(d, hn::Sub(before, max)));
      lanes.Store(hn::Mul(grown, normaliser), d, factors + i);
    });
    ForKeyBlocks(Products::kKeys, keys_, [&](int64_t begin, int64_t end) HWY_ATTR {
      Stored* const weights = WeightsOf(row, begin);
      const T factor = *factors++;
      if (scratch_.strip_width > 0) return ScaleRow(Strip(padded_row, begin), end - begin, factor, weights);
      ScaleRow(weights, end - begin, factor, weights);
    });
  }

  void Finish() const {
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      const Tile<kRows>& tile = scratch_.tiles[t];
      for (int r = 0; r < tile.rows; ++r) {
        const Row& row = tile.row[r];
        const T sum = scratch_.sum[tile.first_row + r];
        ScaleRow(scratch_.output + (tile.first_row + r) * scratch_.value_width, value_dim_, Normaliser(sum),
                 args_.output.at(batch_, row.head, row.query));
        if (args_.lse) {
          *args_.lse.at(batch_, row.head, row.query) = LogSumExp(scratch_.max[tile.first_row + r], sum);
        }
        if (args_.weights) {
          if (scratch_.blocks > 0 && keys_.begin < keys_.end) FinishWeights(row, tile.first_row + r);
          // NaN where the row is: which keys the block of queries has met must not show.
          const T nothing = T{0} * Normaliser(sum);
          FillRow(WeightsOf(row, 0), keys_.begin, nothing);
          FillRow(WeightsOf(row, keys_.end), args_.key.shape[2] - keys_.end, nothing);
        }
      }
    }
  }

  const AttentionArgs<Stored>& args_;
  const int64_t batch_, kv_head_, query_begin_, queries_, group_, rows_, head_dim_, value_dim_;
  const KeyRange keys_;
  const Changes changes_;
  Arena arena_;
  const AttentionScratch<Products> scratch_;
  Products products_;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
