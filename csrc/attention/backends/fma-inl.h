// The matmul backend FMA: both products of attention with fused multiply-adds, by the register tile of
// matmul/fma-inl.h over packed panels. Runs on every target and for every type; compiled by backends/fma.cc.
//
// Packed layouts (matmul/pack-inl.h): queries, multiplied by the scale, as tiles [head_dim][height]; a block's keys as
// panels [head_dim][panel] and its values as panels [keys][panel]. A block of few rows reads its values in place.

#if defined(HEADWISE_ATTENTION_BACKENDS_FMA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKENDS_FMA_INL_H_
#undef HEADWISE_ATTENTION_BACKENDS_FMA_INL_H_
#else
#define HEADWISE_ATTENTION_BACKENDS_FMA_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <variant>

#include "attention/kernel-inl.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/stored_rows-inl.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// A key block and a cache line, so that the rows of a tile of scores do not fall on the same cache sets.
template <typename T>
constexpr int kScoreStride = kKeyBlock<T> + 64 / sizeof(T);

// Up to this many rows in a block of queries, packing the values costs more than reading them with their stride: at 12
// rows of float32 on AVX2 it took 30 % of the time.
constexpr int64_t kMaxRowsInPlace = 48;

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

// The same after the fused modifiers.
template <typename T>
struct ModifyAndStoreScores {
  StoreScores<T> store;
  const FusedModifiers<T>& modifiers;
  const Tile<kTileRows>& tile;
  int64_t key_begin, column;  // of the key block; of the first score in it

  template <int kVectors>
  HWY_INLINE void operator()(int r, const hn::Vec<Tag<T>> (&sums)[kVectors]) const {
    const Tag<T> d;
    const auto modifier = modifiers.ForRow(tile.row[r < tile.rows ? r : 0], key_begin);
    hn::Vec<Tag<T>> modified[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      modified[v] = modifier(d, sums[v], column + v * kLanes<T>, store.valid - v * kLanes<T>);
    }
    store(r, modified);
  }
};

// output = output * rescale + a key block's weighted values. Each block has a sum of its own, so that the rounding
// error grows with the keys of a block plus the number of blocks, not with the number of keys.
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

// Packed arrays and their products, in the accumulator type T: one copy of this code for all element types that share
// it.
template <typename T>
class FmaTiles {
 public:
  static constexpr int kRows = kTileRows;
  static constexpr int kKeys = kKeyBlock<T>;
  static constexpr int kStride = kScoreStride<T>;

  static int64_t ValueWidth(int64_t value_dim) { return PackedColumns<T>(value_dim); }

  template <typename S>
  FmaTiles(Arena& arena, const AttentionArgs<S>& args, int64_t padded_rows)
      : head_dim_(args.query.shape[3]),
        value_dim_(args.value.shape[3]),
        value_width_(ValueWidth(value_dim_)),
        query_(arena.Allocate<T>(padded_rows, head_dim_)),
        key_(arena.Allocate<T>(kKeys, head_dim_)),
        value_(arena.Allocate<T>(kKeys, value_width_)),
        special_(arena.Allocate<T>(kKeys, value_width_)),
        place_(arena.Allocate<Place>(kKeys, value_width_ / kLanes<T>)),
        fused_(args.spec),
        lane_max_(arena.Allocate<T>(kRows * kLanes<T>)) {}

  // scores [kRows][kStride] of keys [from, to) of the packed block, whose first key is `begin`; -inf in the rest of the
  // last vector. max[r]: the row's max; may overlook NaN.
  void Score(const Tile<kRows>& tile, int64_t from, int64_t to, int64_t begin, bool fused, T* scores, T* max) const {
    const Tag<T> d;
    std::fill_n(lane_max_, kRows * kLanes<T>, kMinusInf<T>);
    WithHeight(tile.height, [&](auto height) HWY_ATTR {
      for (int64_t column = from; column < to; column += kPanel<T>) {
        const StoreScores<T> store{scores + column, lane_max_, to - column};
        if (PanelWidth<T>(column, keys_) == kPanel<T>) {
          ScorePanel<height.value, 2>(tile, column, begin, fused, store);
        } else {
          ScorePanel<height.value, 1>(tile, column, begin, fused, store);
        }
      }
    });
    for (int r = 0; r < kRows; ++r) max[r] = MaxLane(d, hn::Load(d, lane_max_ + r * kLanes<T>));
  }

  // output[r] = rescale[r] * output[r] + weights times values, over keys [from, to) of the packed block. weights
  // [kRows][kStride]: the buffer of the scores.
  void AddValues(const Tile<kRows>& tile, int64_t from, int64_t to, const T* weights, int /*buffer*/, const T* rescale,
                 T* output) const {
    WithHeight(tile.height, [&](auto height) HWY_ATTR {
      for (int64_t column = 0; column < value_dim_; column += kPanel<T>) {
        const int64_t width = PanelWidth<T>(column, value_dim_), stride = value_rows_ ? value_stride_ : width;
        const T* values = (value_rows_ ? value_rows_ + column : value_ + keys_ * column) + from * stride;
        const AddToOutputs<T> outputs{output + column, value_width_, rescale};
        if (width == kPanel<T>) {
          GemmTile<height.value, 2, kStride, 1>(to - from, weights + from, values, stride, FromZero<T>(), outputs);
        } else {
          GemmTile<height.value, 1, kStride, 1>(to - from, weights + from, values, stride, FromZero<T>(), outputs);
        }
      }
    });
    if (special_count_ > 0) AddSpecialValues(tile.rows, from, to, weights, output);
  }

 protected:
  // Moves NaN and infinities of the packed values to `special_`: a key of weight 0 must not contribute them, but 0 *
  // NaN is NaN.
  HWY_NOINLINE void SeparateSpecialValues() {
    const Tag<T> d;
    T* values = value_;
    for (int64_t panel = 0; panel < value_dim_; panel += kPanel<T>) {
      const int64_t width = PanelWidth<T>(panel, value_dim_);
      for (int64_t i = 0; i < keys_ * width; i += kLanes<T>, values += kLanes<T>) {
        const auto value = hn::Load(d, values);
        const auto finite = hn::Eq(hn::Mul(value, hn::Zero(d)), hn::Zero(d));
        if (hn::AllTrue(d, finite)) continue;
        hn::Store(hn::IfThenElseZero(finite, value), d, values);
        hn::Store(hn::IfThenZeroElse(finite, value), d, special_ + special_count_ * kLanes<T>);
        place_[special_count_++] = {static_cast<std::int32_t>(i / width), static_cast<std::int32_t>(panel + i % width)};
      }
    }
  }

  const int64_t head_dim_, value_dim_, value_width_;
  T* const query_;                 // tiles of [head_dim][height]
  T* const key_;                   // panels of [head_dim][panel]
  T* const value_;                 // panels of [keys][panel], 0 where a value is special: NaN or infinite
  const T* value_rows_ = nullptr;  // [keys][value_dim]: the block's values, if they are not packed
  int64_t value_stride_ = 0;       // of value_rows_
  int64_t keys_ = 0;               // in the packed block
  int64_t special_count_ = 0;

 private:
  struct Place {
    std::int32_t key, column;  // of the packed block; of the first lane
  };

  template <int kHeight, int kVectors>
  HWY_INLINE void ScorePanel(const Tile<kRows>& tile, int64_t column, int64_t begin, bool fused,
                             const StoreScores<T>& store) const {
    const T* query = query_ + tile.first_row * head_dim_;
    const T* key = key_ + column * head_dim_;
    if (fused) {
      GemmTile<kHeight, kVectors, 1, kHeight>(head_dim_, query, key, FromZero<T>(),
                                              ModifyAndStoreScores<T>{store, fused_, tile, begin, column});
    } else {
      GemmTile<kHeight, kVectors, 1, kHeight>(head_dim_, query, key, FromZero<T>(), store);
    }
  }

  // Adds the special values of keys [from, to), for the rows whose weight of the key is not 0.
  HWY_NOINLINE void AddSpecialValues(int rows, int64_t from, int64_t to, const T* weights, T* output) const {
    const Tag<T> d;
    for (int64_t i = 0; i < special_count_; ++i) {
      const auto [key, column] = place_[i];
      if (key < from || key >= to) continue;
      const auto special = hn::Load(d, special_ + i * kLanes<T>);
      for (int r = 0; r < rows; ++r) {  // without a branch, which masks would make hard to predict
        const auto weight = hn::Set(d, weights[r * kStride + key]);
        const auto kept = hn::IfThenZeroElse(hn::Eq(weight, hn::Zero(d)), special);
        T* const sum = output + r * value_width_ + column;
        hn::Store(hn::MulAdd(weight, kept, hn::Load(d, sum)), d, sum);
      }
    }
  }

  T* const special_;    // vectors of values, 0 where they are finite
  Place* const place_;  // of each of them
  const FusedModifiers<T> fused_;
  T* const lane_max_;  // [kRows][lanes] of a tile's scores
};

template <typename S>
class FmaProducts : public FmaTiles<Accumulator<S>> {
  using T = Accumulator<S>;
  using Base = FmaTiles<T>;

 public:
  using Stored = S;
  using Base::kRows;
  static constexpr int kStages = 1;

  static int Height(int rows) { return TileHeight(rows); }

  FmaProducts(Arena& arena, const AttentionArgs<S>& args, const AttentionBlock& block, int64_t padded_rows)
      : Base(arena, args, padded_rows),
        args_(args),
        block_(block),
        in_place_(padded_rows <= kMaxRowsInPlace && value_dim_ % kLanes<T> == 0),
        wide_(kIs16Bit<S> || args.stored.index() != 0 ? arena.Allocate<T>(Base::kKeys, std::max(head_dim_, value_dim_))
                                                      : nullptr) {}

  void PackQueries(const Tile<kRows>& tile) const {
    T* packed = query_ + tile.first_row * head_dim_;
    if (tile.rows < tile.height) std::fill_n(packed, head_dim_ * tile.height, T{0});
    for (int r = 0; r < tile.rows;) {
      // A tile may extend into the next head, whose rows are elsewhere in memory.
      int count = 1;
      while (r + count < tile.rows && tile.row[r + count].head == tile.row[r].head) ++count;
      const auto [rows, stride] = Wide(args_.query, tile.row[r].head, tile.row[r].query, count);
      PackPanel(rows, head_dim_, count, int64_t{1}, stride, tile.height, packed + r);
      r += count;
    }
    ScaleRow(packed, head_dim_ * tile.height, static_cast<T>(args_.spec.scale), packed);
  }

  void PackKeys(int64_t begin, int64_t end) {
    keys_ = end - begin;
    const auto [rows, stride] = RowsFrom<false>(begin);
    PackPanels(rows, head_dim_, keys_, int64_t{1}, stride, key_);
  }

  void PackValues(int64_t begin, int64_t end) {
    keys_ = end - begin;
    const auto [rows, stride] = RowsFrom<true>(begin);
    special_count_ = 0;
    value_rows_ = in_place_ && AllRowsFinite(rows, stride) ? rows : nullptr;
    value_stride_ = stride;
    if (value_rows_) return;
    PackPanels(rows, keys_, value_dim_, stride, int64_t{1}, value_);
    if (!AllFinite(value_, keys_ * value_width_)) SeparateSpecialValues();
  }

  // Score post-processing: none here.
  void FinishScores(const Tile<kRows>&, int64_t, int64_t, int64_t, bool, T*, T*) const {}

  // Preparation of row r's weights: none here.
  void PrepareWeights(int, int64_t, int64_t, const T*, int) const {}

 private:
  struct Rows {
    const T* data;
    int64_t stride;
  };

  // Whether the block's values are finite; their rows are whole vectors.
  bool AllRowsFinite(const T* rows, int64_t stride) const {
    if (stride == value_dim_) return AllFinite(rows, keys_ * value_dim_);
    for (int64_t j = 0; j < keys_; ++j) {
      if (!AllFinite(rows + j * stride, value_dim_)) return false;
    }
    return true;
  }

  // The `keys_` rows of keys or of values from `first` on.
  template <bool kValues>
  Rows RowsFrom(int64_t first) const {
    const auto wide = [&](const auto& keys)
                          HWY_ATTR { return Wide(kValues ? keys.value : keys.key, block_.kv_head, first, keys_); };
    if constexpr (std::is_same_v<S, float>) {
      if (const auto* keys = std::get_if<StoredKeys<Float16>>(&args_.stored)) return wide(*keys);
      if (const auto* keys = std::get_if<StoredKeys<BFloat16>>(&args_.stored)) return wide(*keys);
      if (const auto* keys = std::get_if<StoredKeys<std::int8_t>>(&args_.stored)) {
        return Scaled({kValues ? keys->value : keys->key, kValues ? keys->value_bits : keys->key_bits, block_.batch,
                       block_.kv_head},
                      kValues ? value_dim_ : head_dim_, kValues ? keys->value_scale : keys->key_scale, first);
      }
    }
    return wide(args_);
  }

  // `keys_` rows of int8 from `first` on, times their factors.
  Rows Scaled(const StoredRows<std::int8_t>& rows, int64_t width, const View<const float, 3>& scale,
              int64_t first) const {
    const Tag<T> d;
    for (int64_t i = 0; i < keys_; ++i) {
      const auto factor = hn::Set(d, static_cast<T>(*scale.at(block_.batch, block_.kv_head, first + i)));
      ForEachVector(d, width, [&](auto lanes, int64_t k) HWY_ATTR {
        lanes.Store(hn::Mul(rows.Load(lanes, d, first + i, k), factor), d, wide_ + i * width + k);
      });
    }
    return {wide_, width};
  }

  // Rows [first, first + count) of a head, widened from types other than T.
  template <typename K>
  Rows Wide(const View<const K, 4>& array, int64_t head, int64_t first, int64_t count) const {
    if constexpr (sizeof(K) < sizeof(float)) {
      const int64_t width = array.shape[3];
      for (int64_t i = 0; i < count; ++i) Widen(array.at(block_.batch, head, first + i), width, wide_ + i * width);
      return {wide_, width};
    } else {
      return {array.at(block_.batch, head, first), array.stride[2]};
    }
  }

  using Base::head_dim_;
  using Base::key_;
  using Base::keys_;
  using Base::query_;
  using Base::SeparateSpecialValues;
  using Base::special_count_;
  using Base::value_;
  using Base::value_dim_;
  using Base::value_rows_;
  using Base::value_stride_;
  using Base::value_width_;
  const AttentionArgs<S>& args_;
  const AttentionBlock block_;
  const bool in_place_;  // finite values
  T* const wide_;        // [kKeys][max width] staging buffer of converted rows
};

// One tile of rows after the other.
template <typename S>
void FmaKeyBlock(const AttentionRun<FmaProducts<S>>& run, int64_t begin, int64_t end) {
  for (int64_t t = 0; const auto stage = NextTile(run, t, begin, end);) {
    ComputeScores(run, stage, begin);
    FinishScores(run, stage, begin);
    UpdateTileMaxima(run, stage);
    for (int r = 0; r < stage.tile->rows; ++r) ComputeWeights(run, stage, r, begin, end);
    AddValues(run, stage);
  }
}

template <typename S>
void FmaAttentionBlock(const AttentionArgs<S>& args, const AttentionBlock& block, std::byte* scratch) {
  AttentionRun<FmaProducts<S>> run(args, block, scratch);
  RunAttention(run, [&](int64_t begin, int64_t end) HWY_ATTR { FmaKeyBlock(run, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
