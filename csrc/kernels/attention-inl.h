// Many queries against all keys that any of them keeps: flash attention for one core.
//
// Keys go by in blocks of 1 KB a row (256 in float32). A block's keys are packed into panels [head_dim][keys] and its
// values into panels [keys][value_dim] once (pack-inl.h), then every tile of up to kTileRows rows of the block of
// queries
//   1. multiplies its packed queries, which carry the scale, with the key panels: scores, in L1; ALiBi is added, and
//      the largest of each row found, while the sums are in registers;
//   2. changes and limits the scores where anything asks for it (scores-inl.h);
//   3. moves its rows' maxima m, all at once, and takes p_j = exp(s_j - m), sum p_j;
//   4. adds p V to its outputs, which are multiplied by exp(old m - new m) as they are loaded.
// One division per output ends it. With weights and more than one block of keys, scores are kept (in the weights' own
// memory) until the maximum over all keys is known, and meet the values in a second sweep.
//
// Blocks of keys and panels begin at multiples of their size from key 0, whatever the block of queries: what a row adds
// up, and in which order, depends on that row alone, so that results are the same bits for any number of threads.
//
// Work: 4 * head_dim operations a score in the products at the speed of gemm-inl.h, about 15 vector operations per
// vector of scores besides. Scratch: the packed queries and outputs of the block of queries, one packed block of keys
// and of values, one tile of scores; nothing grows with the number of keys.

#if defined(HEADWISE_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_ATTENTION_INL_H_
#undef HEADWISE_KERNELS_ATTENTION_INL_H_
#else
#define HEADWISE_KERNELS_ATTENTION_INL_H_
#endif

#include <algorithm>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/attention.h"
#include "kernels/attention_rows-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/scores-inl.h"
#include "runtime/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A cache line more than a block: rows of a tile of scores do not fall on the same cache sets.
template <typename T>
constexpr int kScoreStride = kKeyBlock<T> + 64 / sizeof(T);

// Up to kTileRows rows, and the keys that any and that all of them keep.
struct Tile {
  int64_t first_row;
  int rows, height;
  int64_t low, high, all_low, all_high;
  Row row[kTileRows];
};

template <typename T>
struct AttentionScratch {
  AttentionScratch(Arena& arena, const AttentionArgs<T>& args, int64_t rows)
      : tile_count((rows + kTileRows - 1) / kTileRows),
        padded_rows(tile_count * kTileRows),
        value_width(PackedColumns<T>(args.value.shape[3])),
        tiles(arena.Take<Tile>(tile_count)),
        query(arena.Take<T>(padded_rows * args.query.shape[3])),
        output(arena.Take<T>(padded_rows * value_width)),
        max(arena.Take<T>(padded_rows)),
        sum(arena.Take<T>(padded_rows)),
        key(arena.Take<T>(kKeyBlock<T> * args.query.shape[3])),
        value(arena.Take<T>(kKeyBlock<T> * value_width)),
        scores(arena.Take<T>(kTileRows * kScoreStride<T>)),
        lane_max(arena.Take<T>(kTileRows * kLanes<T>)),
        shift(arena.Take<T>(kTileRows)),
        rescale(arena.Take<T>(kTileRows)) {}

  int64_t tile_count, padded_rows, value_width;
  Tile* tiles;
  T* query;     // tiles of [head_dim][height]
  T* output;    // [padded_rows][value_width], not divided by the sum yet
  T* max;       // [padded_rows] of the scores so far
  T* sum;       // [padded_rows] of exp(score - max) so far
  T* key;       // panels of [head_dim][panel]
  T* value;     // panels of [keys][panel]
  T* scores;    // [kTileRows][kScoreStride], then weights
  T* lane_max;  // [kTileRows][lanes] of the tile's scores
  T* shift;     // [kTileRows]: largest of the tile's scores, then what to subtract from them
  T* rescale;   // [kTileRows] factors for the outputs of the tile
};

template <typename T>
std::size_t AttentionScratchBytes(const AttentionArgs<T>& args, int64_t rows) {
  Arena measure(nullptr);
  AttentionScratch<T>(measure, args, rows);
  return measure.used();
}

// Sums that start from zero.
template <typename T>
struct FromZero {
  HWY_INLINE hn::Vec<Tag<T>> operator()(int, int) const { return hn::Zero(Tag<T>()); }
};

// Stores a panel of scores, of which `valid` belong to keys, and keeps the lanewise maximum of each row.
template <typename T>
struct StoreScores {
  T* scores;
  T* max;
  int64_t valid;

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    auto row_max = hn::Load(d, max + r * kLanes<T>);
    for (int v = 0; v < kVectors; ++v) {
      auto score = sums[v];
      if (const int64_t left = valid - v * kLanes<T>; HWY_UNLIKELY(left < kLanes<T>)) {
        const auto kept = hn::FirstN(d, static_cast<std::size_t>(std::max<int64_t>(0, left)));
        score = hn::IfThenElse(kept, score, hn::Set(d, kMinusInf<T>));
      }
      hn::StoreU(score, d, scores + r * kScoreStride<T> + v * kLanes<T>);
      row_max = hn::Max(row_max, score);
    }
    hn::Store(row_max, d, max + r * kLanes<T>);
  }
};

// The same after -slope * |query - key|.
template <typename T>
struct StoreAlibiScores {
  StoreScores<T> store;
  const AttentionArgs<T>& args;
  const Tile& tile;
  int64_t key;  // of the first score

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    const Row& row = tile.row[r < tile.rows ? r : 0];
    const auto slope = hn::Set(d, args.slopes[row.head]);
    hn::Vec<Tag<T>> biased[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t from_query = key + v * kLanes<T> - row.query - args.offset;
      biased[v] = hn::NegMulAdd(slope, hn::Abs(hn::Iota(d, static_cast<T>(from_query))), sums[v]);
    }
    store(r, biased);
  }
};

// Adds a block's weighted values to the outputs, which are rescaled as they are loaded. The block's sum is its own, so
// that rounding grows with the length of a block and the number of blocks, not with the number of keys.
template <typename T>
struct AddToOutputs {
  T* output;
  int64_t stride;
  const T* rescale;

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    const auto factor = hn::Set(d, rescale[r]);
    for (int v = 0; v < kVectors; ++v) {
      T* to = output + r * stride + v * kLanes<T>;
      hn::Store(hn::MulAdd(hn::Load(d, to), factor, sums[v]), d, to);
    }
  }
};

template <typename T>
bool AllFinite(const T* packed, int64_t count) {
  const Tag<T> d;
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kLanes<T>) sum = hn::MulAdd(hn::Load(d, packed + i), hn::Zero(d), sum);
  return hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
}

template <typename T>
class AttentionRun {
 public:
  AttentionRun(const AttentionArgs<T>& args, const AttentionBlock& block, std::byte* memory)
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
        scratch_(arena_, args, rows_) {}

  void Run() {
    Begin();
    if (args_.weights && keys_.begin / kKeyBlock<T> != (keys_.end - 1) / kKeyBlock<T>) {
      Sweep([this](int64_t begin, int64_t end) HWY_ATTR { KeepScores(begin, end); });
      for (int64_t t = 0; t < scratch_.tile_count; ++t) ExponentialsOfWeights(scratch_.tiles[t]);
      Sweep([this](int64_t begin, int64_t end) HWY_ATTR { ApplyWeights(begin, end); });
    } else {
      Sweep([this](int64_t begin, int64_t end) HWY_ATTR { Online(begin, end); });
    }
    Finish();
  }

 private:
  // The keys of the current block, counted from its first, that a tile keeps any of.
  struct Part {
    int64_t from, to;  // from: a multiple of a panel
    Changes changes;
    bool empty() const { return from >= to; }
  };

  template <class Function>
  void Sweep(const Function& function) const {
    ForKeyBlocks<T>(keys_, function);
  }

  Part PartOf(const Tile& tile, int64_t begin, int64_t end) const {
    const int64_t low = std::max(tile.low, begin), high = std::min(tile.high, end);
    Part part{(low - begin) / kPanel<T> * kPanel<T>, high - begin, changes_};
    if (low >= high) part.from = part.to = 0;
    if (changes_.keep) {
      bool all = true;
      for (const auto& keep : args_.keep) {
        if (part.empty()) break;
        const KeptKeys kept = KeptByMask<T>(keep, batch_, tile.row, tile.rows, begin, part.from, part.to);
        part.from = kept.from, part.to = kept.to, all &= kept.all;
      }
      part.changes.keep = !all;
    }
    if (part.empty()) return part;
    part.changes.limit = tile.all_low > begin + part.from || tile.all_high < begin + part.to;
    return part;
  }

  void Begin() const {
    const int64_t padded = scratch_.padded_rows;
    std::fill_n(scratch_.output, padded * scratch_.value_width, T{0});
    std::fill_n(scratch_.rescale, kTileRows, T{1});
    std::fill_n(scratch_.max, padded, kMinusInf<T>);
    std::fill_n(scratch_.sum, padded, T{0});
    int64_t member = 0, query = 0;  // of the group, of the queries
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      Tile& tile = scratch_.tiles[t];
      tile.first_row = t * kTileRows;
      tile.rows = static_cast<int>(std::min<int64_t>(kTileRows, rows_ - tile.first_row));
      tile.height = TileHeight(tile.rows);
      tile.low = tile.all_high = args_.key.shape[2], tile.high = tile.all_low = 0;
      for (int r = 0; r < tile.rows; ++r) {
        const Row& row = tile.row[r] = MakeRow(args_, kv_head_ * group_ + member, query_begin_ + query);
        if (row.low < row.high) tile.low = std::min(tile.low, row.low), tile.high = std::max(tile.high, row.high);
        tile.all_low = std::max(tile.all_low, row.low), tile.all_high = std::min(tile.all_high, row.high);
        if (args_.sinks && args_.sinks[row.head] != kMinusInf<T>) {
          scratch_.max[tile.first_row + r] = args_.sinks[row.head];
          scratch_.sum[tile.first_row + r] = T{1};
        }
        if (++query == queries_) query = 0, ++member;
      }
      PrefetchKeys(tile.first_row, tile.first_row + kTileRows);
      PackQueries(tile);
    }
  }

  // The first block's keys and values: of short sequences, which come from memory as often as not, they are all.
  void PrefetchKeys(int64_t from, int64_t to) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    to = std::min<int64_t>({to, kKeyBlock<T>, keys_.end - keys_.begin});
    for (int64_t j = from; j < to; ++j) {
      const T* key = args_.key.at(batch_, kv_head_, keys_.begin + j);
      const T* value = args_.value.at(batch_, kv_head_, keys_.begin + j);
      for (int64_t i = 0; i < head_dim_; i += kLine) hwy::Prefetch(key + i);
      for (int64_t i = 0; i < value_dim_; i += kLine) hwy::Prefetch(value + i);
    }
  }

  // Times the scale.
  void PackQueries(const Tile& tile) const {
    T* packed = scratch_.query + tile.first_row * head_dim_;
    if (tile.rows < tile.height) std::fill_n(packed, head_dim_ * tile.height, T{0});
    for (int r = 0; r < tile.rows;) {
      // A tile may reach into the next head, whose rows are elsewhere.
      int count = 1;
      while (r + count < tile.rows && tile.row[r + count].head == tile.row[r].head) ++count;
      PackPanel(args_.query.at(batch_, tile.row[r].head, tile.row[r].query), head_dim_, count, int64_t{1},
                args_.query.stride[2], tile.height, packed + r);
      r += count;
    }
    ScaleRow(packed, head_dim_ * tile.height, static_cast<T>(args_.scale), packed);
  }

  void PackKeys(int64_t begin, int64_t end) const {
    PackPanels(args_.key.at(batch_, kv_head_, begin), head_dim_, end - begin, int64_t{1}, args_.key.stride[2],
               scratch_.key);
  }

  void PackValues(int64_t begin, int64_t end) {
    PackPanels(args_.value.at(batch_, kv_head_, begin), end - begin, value_dim_, args_.value.stride[2], int64_t{1},
               scratch_.value);
    values_finite_ = AllFinite(scratch_.value, (end - begin) * scratch_.value_width);
  }

  T* ScoresOf(int r) const { return scratch_.scores + r * kScoreStride<T>; }

  T* WeightsOf(const Row& row, int64_t key) const { return args_.weights.at(batch_, row.head, row.query, key); }

  void Online(int64_t begin, int64_t end) {
    PackKeys(begin, end);
    PackValues(begin, end);
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      const Tile& tile = scratch_.tiles[t];
      const Part part = PartOf(tile, begin, end);
      if (!part.empty()) {
        Score(tile, part, begin, end);
        MoveMaxima(kTileRows, scratch_.max + tile.first_row, scratch_.sum + tile.first_row, scratch_.shift,
                   scratch_.rescale);
        for (int r = 0; r < tile.rows; ++r) {
          scratch_.sum[tile.first_row + r] += Exponentials(ScoresOf(r), part.from, part.to, scratch_.shift[r]);
        }
      }
      if (args_.weights) {  // all keys are in this block
        for (int r = 0; r < tile.rows; ++r) StoreWeights(tile, r, part, begin, end);
      }
      if (part.empty()) continue;
      for (int r = 0; r < tile.rows; ++r) Drop(tile, r, part, begin);
      AddValues(tile, part, end - begin);
    }
  }

  // Scores of the tile; shift has each row's largest.
  void Score(const Tile& tile, const Part& part, int64_t begin, int64_t end) const {
    const Tag<T> d;
    Changes changes = part.changes;
    const bool alibi = changes.alibi && !changes.softcap;
    if (alibi) changes.alibi = false;
    std::fill_n(scratch_.lane_max, kTileRows * kLanes<T>, kMinusInf<T>);
    WithHeight(tile.height, [&](auto height) HWY_ATTR {
      ForPanels(part, end - begin, [&](int64_t column, auto vectors) HWY_ATTR {
        const T* query = scratch_.query + tile.first_row * head_dim_;
        const T* key = scratch_.key + column * head_dim_;
        const StoreScores<T> store{scratch_.scores + column, scratch_.lane_max, part.to - column};
        if (alibi) {
          GemmTile<height.value, vectors.value, 1, height.value>(
              head_dim_, query, key, FromZero<T>(), StoreAlibiScores<T>{store, args_, tile, begin + column});
        } else {
          GemmTile<height.value, vectors.value, 1, height.value>(head_dim_, query, key, FromZero<T>(), store);
        }
      });
    });
    if (changes) {
      std::fill_n(scratch_.shift, kTileRows, kMinusInf<T>);
      for (int r = 0; r < tile.rows; ++r) {
        const ScoreRow<T> row(ScoresOf(r), begin, part.from, part.to);
        row.Change(args_, batch_, tile.row[r], changes);
        scratch_.shift[r] = row.Max();
      }
    } else {
      for (int r = 0; r < kTileRows; ++r) {
        scratch_.shift[r] = GreatestLane(d, hn::Load(d, scratch_.lane_max + r * kLanes<T>));
      }
    }
  }

  // function(column, vectors) for the panels of the part, in a block of `keys` keys.
  template <class Function>
  HWY_INLINE void ForPanels(const Part& part, int64_t keys, const Function& function) const {
    for (int64_t column = part.from; column < part.to; column += kPanel<T>) {
      if (PanelWidth<T>(column, keys) == kPanel<T>) {
        function(column, Int<2>());
      } else {
        function(column, Int<1>());
      }
    }
  }

  void Drop(const Tile& tile, int r, const Part& part, int64_t begin) const {
    if (!args_.drop) return;
    const Row& row = tile.row[r];
    DropWeights(args_.drop.at(batch_, row.head, row.query, begin), args_.drop.stride[3],
                static_cast<T>(args_.drop_scale), part.from, part.to, ScoresOf(r));
  }

  void AddValues(const Tile& tile, const Part& part, int64_t keys) const {
    WithHeight(tile.height, [&](auto height) HWY_ATTR { AddValuePanels<height.value>(tile, part, keys); });
  }

  template <int kHeight>
  void AddValuePanels(const Tile& tile, const Part& part, int64_t keys) const {
    const T* weights = scratch_.scores + part.from;
    const T* panel = scratch_.value;
    const int64_t depth = part.to - part.from;
    for (int64_t column = 0; column < value_dim_; column += kPanel<T>) {
      const int64_t width = PanelWidth<T>(column, value_dim_);
      const AddToOutputs<T> outputs{scratch_.output + tile.first_row * scratch_.value_width + column,
                                    scratch_.value_width, scratch_.rescale};
      const T* values = panel + part.from * width;
      if (!values_finite_) {
        AddNonFinite(tile.rows, depth, values, width, weights, outputs);
      } else if (width == kPanel<T>) {
        GemmTile<kHeight, 2, kScoreStride<T>, 1>(depth, weights, values, FromZero<T>(), outputs);
      } else {
        GemmTile<kHeight, 1, kScoreStride<T>, 1>(depth, weights, values, FromZero<T>(), outputs);
      }
      panel += keys * width;
    }
  }

  // The same for values with NaN or Inf among them: a key of weight 0 is passed over, for 0 * NaN is not 0.
  void AddNonFinite(int rows, int64_t depth, const T* values, int64_t width, const T* weights,
                    const AddToOutputs<T>& outputs) const {
    const Tag<T> d;
    for (int r = 0; r < rows; ++r, weights += kScoreStride<T>) {
      for (int64_t v = 0; v < width; v += kLanes<T>) {
        T* output = outputs.output + r * outputs.stride + v;
        auto sum = hn::Zero(d);
        for (int64_t j = 0; j < depth; ++j) {
          if (weights[j] != T{0}) sum = hn::MulAdd(hn::Set(d, weights[j]), hn::Load(d, values + j * width + v), sum);
        }
        hn::Store(hn::MulAdd(hn::Load(d, output), hn::Set(d, outputs.rescale[r]), sum), d, output);
      }
    }
  }

  // First sweep with weights: final scores go where the weights will be.
  void KeepScores(int64_t begin, int64_t end) const {
    PackKeys(begin, end);
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      const Tile& tile = scratch_.tiles[t];
      const Part part = PartOf(tile, begin, end);
      if (!part.empty()) {
        Score(tile, part, begin, end);
        // The sums are the sinks' parts so far.
        MoveMaxima(kTileRows, scratch_.max + tile.first_row, scratch_.sum + tile.first_row, scratch_.shift,
                   scratch_.rescale);
      }
      for (int r = 0; r < tile.rows; ++r) {
        T* weights = WeightsOf(tile.row[r], begin);
        std::fill(weights, weights + part.from, kMinusInf<T>);
        std::copy(ScoresOf(r) + part.from, ScoresOf(r) + part.to, weights + part.from);
        std::fill(weights + part.to, weights + (end - begin), kMinusInf<T>);
      }
    }
  }

  // Between the sweeps: scores become weights that are not divided by their sum yet.
  void ExponentialsOfWeights(const Tile& tile) const {
    for (int r = 0; r < tile.rows; ++r) {
      const T max = scratch_.max[tile.first_row + r];
      scratch_.sum[tile.first_row + r] +=
          Exponentials(WeightsOf(tile.row[r], 0), keys_.begin, keys_.end, max == kMinusInf<T> ? T{0} : max);
    }
    std::fill_n(scratch_.rescale, kTileRows, T{1});
  }

  // Second sweep with weights.
  void ApplyWeights(int64_t begin, int64_t end) {
    PackValues(begin, end);
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      const Tile& tile = scratch_.tiles[t];
      const Part part = PartOf(tile, begin, end);
      for (int r = 0; r < tile.rows; ++r) {
        const T* weights = WeightsOf(tile.row[r], begin);
        std::copy(weights + part.from, weights + part.to, ScoresOf(r) + part.from);
        StoreWeights(tile, r, part, begin, end);
        Drop(tile, r, part, begin);
      }
      if (!part.empty()) AddValues(tile, part, end - begin);
    }
  }

  // The row's weights for the keys [begin, end), from scores that have become weights.
  void StoreWeights(const Tile& tile, int r, const Part& part, int64_t begin, int64_t end) const {
    const T factor = Normaliser(scratch_.sum[tile.first_row + r]);
    const T nothing = T{0} * factor;  // NaN where the row is
    T* weights = WeightsOf(tile.row[r], begin);
    std::fill(weights, weights + part.from, nothing);
    ScaleRow(ScoresOf(r) + part.from, part.to - part.from, factor, weights + part.from);
    std::fill(weights + part.to, weights + (end - begin), nothing);
  }

  void Finish() const {
    for (int64_t t = 0; t < scratch_.tile_count; ++t) {
      const Tile& tile = scratch_.tiles[t];
      for (int r = 0; r < tile.rows; ++r) {
        const Row& row = tile.row[r];
        const T sum = scratch_.sum[tile.first_row + r];
        ScaleRow(scratch_.output + (tile.first_row + r) * scratch_.value_width, value_dim_, Normaliser(sum),
                 args_.output.at(batch_, row.head, row.query));
        if (args_.lse) {
          *args_.lse.at(batch_, row.head, row.query) = LogSumExp(scratch_.max[tile.first_row + r], sum);
        }
        if (args_.weights) {
          std::fill(WeightsOf(row, 0), WeightsOf(row, keys_.begin), T{0});
          std::fill(WeightsOf(row, keys_.end), WeightsOf(row, args_.key.shape[2]), T{0});
        }
      }
    }
  }

  const AttentionArgs<T>& args_;
  const int64_t batch_, kv_head_, query_begin_, queries_, group_, rows_, head_dim_, value_dim_;
  const KeyRange keys_;
  const Changes changes_;
  Arena arena_;
  const AttentionScratch<T> scratch_;
  bool values_finite_ = true;
};

template <typename T>
void AttentionRunBlock(const AttentionArgs<T>& args, const AttentionBlock& block, std::byte* scratch) {
  AttentionRun<T>(args, block, scratch).Run();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
