// A block of queries against all keys that any of them keeps: flash attention for one core.
//
// Keys go by in blocks of 1 KB a row (256 in float32). A block's keys are packed into panels [head_dim][keys] and its
// values into panels [keys][value_dim] once (pack-inl.h), then every tile of up to kTileRows rows of the block of
// queries
//   1. multiplies its packed queries, which carry the scale, with the key panels: scores, in L1; the largest of each
//   row
//      is found while the sums are in registers;
//   2. changes and limits the scores where anything asks for it (scores-inl.h);
//   3. moves each row's maximum m and takes p_j = exp(s_j - m), sum p_j;
//   4. adds p V to its outputs, which are multiplied by exp(old m - new m) as they are loaded.
// One division per output ends it. With weights, scores are kept (in the weights' own memory) until the maximum over
// all keys is known, and are normalised before they meet the values.
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
#include <cmath>

#include "hwy/highway.h"
#include "kernels/attention.h"
#include "kernels/attention_exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/scores-inl.h"
#include "runtime/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename T>
constexpr int kKeyBlock = 1024 / sizeof(T);

// A cache line more than a block: rows of a tile of scores do not fall on the same cache sets.
template <typename T>
constexpr int kScoreStride = kKeyBlock<T> + 64 / sizeof(T);

template <typename T>
struct AttentionScratch {
  AttentionScratch(Arena& arena, const AttentionArgs<T>& args, int64_t rows)
      : padded_rows((rows + kTileRows - 1) / kTileRows * kTileRows),
        value_width(PackedColumns<T>(args.value.shape[3])),
        query(arena.Take<T>(padded_rows * args.query.shape[3])),
        output(arena.Take<T>(padded_rows * value_width)),
        max(arena.Take<T>(padded_rows)),
        sum(arena.Take<T>(padded_rows)),
        key(arena.Take<T>(kKeyBlock<T> * args.query.shape[3])),
        value(arena.Take<T>(kKeyBlock<T> * value_width)),
        scores(arena.Take<T>(kTileRows * kScoreStride<T>)),
        tile_max(arena.Take<T>(kTileRows * kLanes<T>)),
        rescale(arena.Take<T>(kTileRows)) {}

  int64_t padded_rows, value_width;
  T* query;     // tiles of [head_dim][height]
  T* output;    // [padded_rows][value_width], not divided by the sum yet
  T* max;       // [padded_rows] of the scores so far
  T* sum;       // [padded_rows] of exp(score - max) so far
  T* key;       // panels of [head_dim][panel]
  T* value;     // panels of [keys][panel]
  T* scores;    // [kTileRows][kScoreStride], then weights
  T* tile_max;  // [kTileRows][lanes]
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

// Stores a panel of scores and keeps the lanewise maximum of each row.
template <typename T>
struct StoreScores {
  T* scores;
  T* max;

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    auto row_max = hn::Load(d, max + r * kLanes<T>);
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[v], d, scores + r * kScoreStride<T> + v * kLanes<T>);
      row_max = hn::Max(row_max, sums[v]);
    }
    hn::Store(row_max, d, max + r * kLanes<T>);
  }
};

// The same for the panel in which the keys end after `valid` columns.
template <typename T>
struct StoreLastScores {
  StoreScores<T> store;
  int64_t valid;

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    hn::Vec<Tag<T>> limited[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const auto kept = hn::FirstN(d, static_cast<std::size_t>(std::max<int64_t>(0, valid - v * kLanes<T>)));
      limited[v] = hn::IfThenElse(kept, sums[v], hn::Set(d, kMinusInf<T>));
    }
    store(r, limited);
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
T ScalarExp(T x) {
  const Tag<T> d;
  return hn::GetLane(AttentionExp(d, hn::Set(d, x)));
}

// scores[from, to) become exp(score - max), in place; returns their sum. `from` is a multiple of a panel. Which lane
// adds up which score follows from its place alone, so that zeros at either end change no bit of the sum.
template <typename T>
T Exponentials(T* scores, int64_t from, int64_t to, T max) {
  const Tag<T> d;
  const auto minus_max = hn::Set(d, -max);
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t j = from;
  for (; j + kPanel<T> <= to; j += kPanel<T>) {
    const auto p0 = AttentionExp(d, hn::Add(hn::LoadU(d, scores + j), minus_max));
    const auto p1 = AttentionExp(d, hn::Add(hn::LoadU(d, scores + j + kLanes<T>), minus_max));
    hn::StoreU(p0, d, scores + j);
    hn::StoreU(p1, d, scores + j + kLanes<T>);
    even = hn::Add(even, p0);
    odd = hn::Add(odd, p1);
  }
  bool is_odd = false;
  ForEachVector(d, to - j, [&](auto lanes, int64_t i) HWY_ATTR {
    const auto p = lanes.Or(d, AttentionExp(d, hn::Add(lanes.Load(d, scores + j + i), minus_max)), hn::Zero(d));
    lanes.Store(p, d, scores + j + i);
    (is_odd ? odd : even) = hn::Add(is_odd ? odd : even, p);
    is_odd = true;
  });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
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
        changes_scores_(ChangesScores(args)),
        arena_(memory),
        scratch_(arena_, args, rows_) {
    first_key_ = MakeRow(args, 0, block.query_begin).low / kPanel<T> * kPanel<T>;
    last_key_ = std::max(first_key_, MakeRow(args, 0, block.query_end - 1).high);
    for (const auto& keep : args.keep) SkipPadding(keep);
  }

  void Run() {
    Begin();
    if (args_.weights) {
      ForKeyBlocks([this](int64_t begin, int64_t end) HWY_ATTR { KeepScores(begin, end); });
      for (int64_t r = 0; r < rows_; ++r) NormaliseWeights(r);
      ForKeyBlocks([this](int64_t begin, int64_t end) HWY_ATTR { ApplyWeights(begin, end); });
    } else {
      ForKeyBlocks([this](int64_t begin, int64_t end) HWY_ATTR { Online(begin, end); });
    }
    Finish();
  }

 private:
  // Up to kTileRows rows and the keys of the current block, counted from its first, that any of them keeps.
  struct Tile {
    int64_t first_row;
    int rows, height;
    Row row[kTileRows];
    int64_t from, to;  // from: a multiple of a panel
    bool limited;      // some row keeps only some of these keys
  };

  Row RowAt(int64_t r) const { return MakeRow(args_, kv_head_ * group_ + r / queries_, query_begin_ + r % queries_); }

  // Leaves out the keys at either end that a mask without heads and queries, key padding, drops.
  void SkipPadding(const View<const std::uint8_t, 4>& keep) {
    const bool shared = (keep.stride[1] == 0 || keep.shape[1] == 1) && (keep.stride[2] == 0 || keep.shape[2] == 1);
    if (!shared || keep.stride[3] == 0) return;
    const std::uint8_t* kept = keep.at(batch_);
    while (last_key_ > first_key_ && !kept[last_key_ - 1]) --last_key_;
    while (first_key_ < last_key_ && !kept[first_key_]) ++first_key_;
    first_key_ = first_key_ / kPanel<T> * kPanel<T>;
  }

  template <class Function>
  void ForKeyBlocks(const Function& function) const {
    for (int64_t begin = first_key_; begin < last_key_;) {
      const int64_t end = std::min(last_key_, (begin / kKeyBlock<T> + 1) * kKeyBlock<T>);
      function(begin, end);
      begin = end;
    }
  }

  // Calls function(tile) for each tile that keeps any key of [begin, end).
  template <class Function>
  void ForTiles(int64_t begin, int64_t end, const Function& function) const {
    for (int64_t first = 0; first < rows_; first += kTileRows) {
      Tile tile;
      tile.first_row = first;
      tile.rows = static_cast<int>(std::min<int64_t>(kTileRows, rows_ - first));
      tile.height = TileHeight(tile.rows);
      int64_t low = end, high = begin, all_from = begin, all_to = end;
      for (int r = 0; r < tile.rows; ++r) {
        const Row& row = tile.row[r] = RowAt(first + r);
        low = std::min(low, row.low), high = std::max(high, row.high);
        all_from = std::max(all_from, row.low), all_to = std::min(all_to, row.high);
      }
      if (low >= high) continue;
      low = std::max(low, begin), high = std::min(high, end);
      tile.from = (low - begin) / kPanel<T> * kPanel<T>;
      tile.to = high - begin;
      tile.limited = all_from > begin + tile.from || all_to < high;
      function(tile);
    }
  }

  void Begin() {
    std::fill_n(scratch_.output, scratch_.padded_rows * scratch_.value_width, T{0});
    std::fill_n(scratch_.rescale, kTileRows, T{1});
    for (int64_t first = 0; first < rows_; first += kTileRows) PackQueries(first);
    for (int64_t r = 0; r < rows_; ++r) {
      const T sink = args_.sinks ? args_.sinks[RowAt(r).head] : kMinusInf<T>;
      scratch_.max[r] = sink;
      scratch_.sum[r] = sink == kMinusInf<T> ? T{0} : T{1};
    }
  }

  // The tile of queries that begins at row `first`, times the scale.
  void PackQueries(int64_t first) const {
    const Tag<T> d;
    const int64_t rows = std::min<int64_t>(kTileRows, rows_ - first);
    const int height = TileHeight(rows);
    T* packed = scratch_.query + first * head_dim_;
    // A tile may reach into the next head, whose rows are elsewhere.
    const int64_t here = std::min(rows, queries_ - first % queries_);
    const int64_t stride = args_.query.stride[2];
    if (here == rows) {
      PackTile(QueryAt(first), rows, stride, head_dim_, height, packed);
    } else {
      std::fill_n(packed, head_dim_ * height, T{0});
      for (int64_t r = 0, count = here; r < rows; r += count, count = std::min(queries_, rows - r)) {
        PackPanel(QueryAt(first + r), head_dim_, count, int64_t{1}, stride, height, packed + r);
      }
    }
    const auto factor = hn::Set(d, static_cast<T>(args_.scale));
    ForEachVector(d, head_dim_ * height, [&](auto lanes, int64_t i) HWY_ATTR {
      lanes.Store(hn::Mul(lanes.Load(d, packed + i), factor), d, packed + i);
    });
  }

  const T* QueryAt(int64_t r) const {
    const Row row = RowAt(r);
    return args_.query.at(batch_, row.head, row.query);
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

  void Online(int64_t begin, int64_t end) {
    PackKeys(begin, end);
    PackValues(begin, end);
    ForTiles(begin, end, [&](const Tile& tile) HWY_ATTR {
      Score(tile, begin, end);
      bool any = false;
      for (int r = 0; r < tile.rows; ++r) any |= Exponentiate(tile, r, begin);
      if (any) AddValues(tile, end - begin);
    });
  }

  // Scores of the tile, and each row's largest in its first lane of tile_max.
  void Score(const Tile& tile, int64_t begin, int64_t end) const {
    const Tag<T> d;
    std::fill_n(scratch_.tile_max, kTileRows * kLanes<T>, kMinusInf<T>);
    WithHeight(tile.height, [&](auto height) HWY_ATTR { ScorePanels<height.value>(tile, end - begin); });
    for (int r = 0; r < tile.rows; ++r) {
      T& max = scratch_.tile_max[r * kLanes<T>];
      if (changes_scores_ || tile.limited) {
        const ScoreRow<T> row(scratch_.scores + r * kScoreStride<T>, begin, tile.from, tile.to);
        row.Change(args_, batch_, tile.row[r]);
        row.Limit(tile.row[r].low, tile.row[r].high);
        max = row.Max();
      } else {
        max = GreatestLane(d, hn::Load(d, scratch_.tile_max + r * kLanes<T>));
      }
      // A maximum may overlook NaN; one of -inf must not, or the row would pass for one that keeps nothing.
      const ScoreRow<T> row(scratch_.scores + r * kScoreStride<T>, begin, tile.from, tile.to);
      if (max == kMinusInf<T> && row.AnyNaN()) max = std::numeric_limits<T>::quiet_NaN();
    }
  }

  template <int kHeight>
  void ScorePanels(const Tile& tile, int64_t keys) const {
    const T* query = scratch_.query + tile.first_row * head_dim_;
    for (int64_t column = tile.from; column < tile.to; column += kPanel<T>) {
      const T* panel = scratch_.key + column * head_dim_;
      const StoreScores<T> store{scratch_.scores + column, scratch_.tile_max};
      const int64_t width = PanelWidth<T>(column, keys);
      if (column + width <= tile.to && width == kPanel<T>) {
        GemmTile<kHeight, 2, 1, kHeight>(head_dim_, query, panel, FromZero<T>(), store);
      } else if (width == kPanel<T>) {
        GemmTile<kHeight, 2, 1, kHeight>(head_dim_, query, panel, FromZero<T>(),
                                         StoreLastScores<T>{store, tile.to - column});
      } else {
        GemmTile<kHeight, 1, 1, kHeight>(head_dim_, query, panel, FromZero<T>(),
                                         StoreLastScores<T>{store, tile.to - column});
      }
    }
  }

  // Moves the row's maximum; its scores become weights relative to it. False if nothing was ever kept.
  bool Exponentiate(const Tile& tile, int r, int64_t begin) const {
    T* scores = scratch_.scores + r * kScoreStride<T>;
    const int64_t to = PackedColumns<T>(tile.to);
    T& max = scratch_.max[tile.first_row + r];
    T& sum = scratch_.sum[tile.first_row + r];
    const T tile_max = scratch_.tile_max[r * kLanes<T>], old = max;
    max = tile_max <= old ? old : tile_max;  // NaN if that is
    if (max == kMinusInf<T>) {
      std::fill(scores + tile.from, scores + to, T{0});
      scratch_.rescale[r] = T{1};
      return false;
    }
    scratch_.rescale[r] = max == old ? T{1} : ScalarExp(old - max);
    sum = sum * scratch_.rescale[r] + Exponentials(scores, tile.from, to, max);
    Drop(tile, r, begin);
    return true;
  }

  void Drop(const Tile& tile, int r, int64_t begin) const {
    if (!args_.drop) return;
    const Row& row = tile.row[r];
    DropWeights(args_.drop.at(batch_, row.head, row.query, begin), args_.drop.stride[3],
                static_cast<T>(args_.drop_scale), tile.from, tile.to, scratch_.scores + r * kScoreStride<T>);
  }

  void AddValues(const Tile& tile, int64_t keys) const {
    WithHeight(tile.height, [&](auto height) HWY_ATTR { AddValuePanels<height.value>(tile, keys); });
  }

  template <int kHeight>
  void AddValuePanels(const Tile& tile, int64_t keys) const {
    const T* weights = scratch_.scores + tile.from;
    const T* panel = scratch_.value;
    for (int64_t column = 0; column < value_dim_; column += kPanel<T>) {
      const int64_t width = PanelWidth<T>(column, value_dim_);
      const AddToOutputs<T> outputs{scratch_.output + tile.first_row * scratch_.value_width + column,
                                    scratch_.value_width, scratch_.rescale};
      const T* values = panel + tile.from * width;
      if (!values_finite_) {
        AddNonFinite(tile, values, width, outputs);
      } else if (width == kPanel<T>) {
        GemmTile<kHeight, 2, kScoreStride<T>, 1>(tile.to - tile.from, weights, values, FromZero<T>(), outputs);
      } else {
        GemmTile<kHeight, 1, kScoreStride<T>, 1>(tile.to - tile.from, weights, values, FromZero<T>(), outputs);
      }
      panel += keys * width;
    }
  }

  // The same for values with NaN or Inf among them: a key of weight 0 is passed over, for 0 * NaN is not 0.
  void AddNonFinite(const Tile& tile, const T* values, int64_t width, const AddToOutputs<T>& outputs) const {
    const Tag<T> d;
    for (int r = 0; r < tile.rows; ++r) {
      const T* weights = scratch_.scores + r * kScoreStride<T> + tile.from;
      for (int64_t v = 0; v < width; v += kLanes<T>) {
        T* output = outputs.output + r * outputs.stride + v;
        auto sum = hn::Zero(d);
        for (int64_t j = 0; j < tile.to - tile.from; ++j) {
          if (weights[j] != T{0}) sum = hn::MulAdd(hn::Set(d, weights[j]), hn::Load(d, values + j * width + v), sum);
        }
        hn::Store(hn::MulAdd(hn::Load(d, output), hn::Set(d, outputs.rescale[r]), sum), d, output);
      }
    }
  }

  T* WeightsOf(const Row& row) const { return args_.weights.at(batch_, row.head, row.query); }

  // First sweep with weights: final scores go where the weights will be.
  void KeepScores(int64_t begin, int64_t end) {
    PackKeys(begin, end);
    for (int64_t r = 0; r < rows_; ++r) std::fill(WeightsOf(RowAt(r)) + begin, WeightsOf(RowAt(r)) + end, kMinusInf<T>);
    ForTiles(begin, end, [&](const Tile& tile) HWY_ATTR {
      Score(tile, begin, end);
      for (int r = 0; r < tile.rows; ++r) {
        const T* scores = scratch_.scores + r * kScoreStride<T>;
        std::copy(scores + tile.from, scores + tile.to, WeightsOf(tile.row[r]) + begin + tile.from);
        T& max = scratch_.max[tile.first_row + r];
        const T tile_max = scratch_.tile_max[r * kLanes<T>], old = max;
        max = tile_max <= old ? old : tile_max;
        scratch_.sum[tile.first_row + r] *= max == old ? T{1} : ScalarExp(old - max);  // the sink's part
      }
    });
  }

  void NormaliseWeights(int64_t r) const {
    const Tag<T> d;
    T* weights = WeightsOf(RowAt(r));
    const T max = scratch_.max[r];
    std::fill(weights, weights + first_key_, T{0});
    std::fill(weights + last_key_, weights + args_.key.shape[2], T{0});
    if (max == kMinusInf<T>) {
      std::fill(weights + first_key_, weights + last_key_, T{0});
      return;
    }
    T& sum = scratch_.sum[r];
    sum += Exponentials(weights, first_key_, last_key_, max);
    const auto factor = hn::Set(d, T{1} / sum);
    ForEachVector(d, last_key_ - first_key_, [&](auto lanes, int64_t j) HWY_ATTR {
      T* w = weights + first_key_ + j;
      lanes.Store(hn::Mul(lanes.Load(d, w), factor), d, w);
    });
  }

  // Second sweep with weights.
  void ApplyWeights(int64_t begin, int64_t end) {
    PackValues(begin, end);
    ForTiles(begin, end, [&](const Tile& tile) HWY_ATTR {
      for (int r = 0; r < tile.rows; ++r) {
        const T* weights = WeightsOf(tile.row[r]) + begin;
        std::copy(weights + tile.from, weights + tile.to, scratch_.scores + r * kScoreStride<T> + tile.from);
        Drop(tile, r, begin);
      }
      AddValues(tile, end - begin);
    });
  }

  void Finish() const {
    const Tag<T> d;
    for (int64_t r = 0; r < rows_; ++r) {
      const Row row = RowAt(r);
      const T sum = scratch_.sum[r], max = scratch_.max[r];
      const bool empty = max == kMinusInf<T>;
      const auto factor = hn::Set(d, args_.weights || empty ? T{1} : T{1} / sum);
      const T* from = scratch_.output + r * scratch_.value_width;
      T* to = args_.output.at(batch_, row.head, row.query);
      ForEachVector(d, value_dim_, [&](auto lanes, int64_t i) HWY_ATTR {
        lanes.Store(hn::Mul(hn::Load(d, from + i), factor), d, to + i);
      });
      if (args_.lse) {
        const double lse = static_cast<double>(max) + std::log(static_cast<double>(sum));
        *args_.lse.at(batch_, row.head, row.query) = empty ? kMinusInf<T> : static_cast<T>(lse);
      }
    }
  }

  const AttentionArgs<T>& args_;
  const int64_t batch_, kv_head_, query_begin_, queries_, group_, rows_, head_dim_, value_dim_;
  const bool changes_scores_;
  Arena arena_;
  const AttentionScratch<T> scratch_;
  int64_t first_key_, last_key_;
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
