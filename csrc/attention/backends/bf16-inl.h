// Both products of attention with bf16 splits (matmul/bf16_split-inl.h): float32 as a sum of kTerms bfloat16 terms. The
// Backend that multiplies them is DotBackend (matmul/bf16_dot-inl.h, one term) or AmxBackend (matmul/bf16_amx-inl.h).
//
// Numbers that a split cannot represent are multiplied in float32, one row or key at a time: queries and keys that are
// not finite or at least 2^126, and key blocks whose values are not finite or at least 2^110. This choice does not
// depend on the block of queries.
//
// Packed layouts, in chunks of 32 numbers of the depth (bf16_split-inl.h): see the members at the end.

#if defined(HEADWISE_ATTENTION_BACKENDS_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKENDS_BF16_INL_H_
#undef HEADWISE_ATTENTION_BACKENDS_BF16_INL_H_
#else
#define HEADWISE_ATTENTION_BACKENDS_BF16_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/kernel-inl.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/bf16_split-inl.h"
#include "simd/rows-inl.h"

#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

template <typename S, int kTerms, class Backend>
class SplitProducts {
 public:
  using Stored = S;
  static constexpr int kRows = kSide;
  static constexpr int kKeys = 128;
  static constexpr int kStride = kKeys + 16;
  static constexpr int kStages = Backend::kStages;

  static int Height(int rows) { return rows <= kTileSide ? kTileSide : kRows; }
  static int64_t ValueWidth(int64_t value_dim) { return (value_dim + kSide - 1) / kSide * kSide; }

  SplitProducts(Arena& arena, const AttentionArgs<S>& args, const AttentionBlock& block, int64_t padded_rows)
      : args_(args),
        block_(block),
        scale_(static_cast<float>(args.spec.scale)),
        scale_first_(!kIs16Bit<S> || PowerOfTwo(scale_)),
        head_dim_(args.query.shape[3]),
        value_dim_(args.value.shape[3]),
        value_width_(ValueWidth(value_dim_)),
        fused_(args.spec),
        query_(arena.Allocate<std::uint32_t>(padded_rows / kRows, Chunks(head_dim_), kChunkSize<kTerms>)),
        key_(arena.Allocate<std::uint32_t>(kKeys / kSide, Chunks(head_dim_), kChunkSize<kTerms>)),
        value_(arena.Allocate<std::uint32_t>(value_width_ / kSide, Chunks(kKeys), kChunkSize<kTerms>)),
        weights_(arena.Allocate<std::uint32_t>(kStages * kWeightsSize)),
        product_(arena.Allocate<float>(kSide, Backend::kFinishes ? 0 : value_width_)),
        lane_max_(arena.Allocate<float>(Backend::kFinishes ? kSide * kLanes<float> : 0)),
        fallback_rows_(arena.Allocate<std::uint32_t>(padded_rows / kRows)) {}

  void PackQueries(const Tile<kRows>& tile) const {
    const Tag<float> d;
    const auto scale = hn::Set(d, scale_first_ ? scale_ : 1.0f);
    std::uint32_t* packed = Query(tile);
    std::uint32_t fallback = 0;
    if (tile.rows < kRows) std::fill_n(packed, Chunks(head_dim_) * kChunkSize<kTerms>, 0u);
    for (int r = 0; r < tile.rows; ++r) {
      const S* row = args_.query.at(block_.batch, tile.row[r].head, tile.row[r].query);
      for (int64_t k = 0; k < head_dim_; k += kChunk) {
        const auto x = hn::Mul(LoadPadded(row, k, head_dim_), scale);
        const auto y = hn::Mul(LoadPadded(row, k + kLanes<float>, head_dim_), scale);
        if (!Splits(x, y)) fallback |= 1u << r;
        StoreSplit<kTerms>(x, y, packed + k / kChunk * kChunkSize<kTerms> + r * kTileSide, 2 * kTileSize);
      }
    }
    fallback_rows_[tile.first_row / kRows] = fallback;
  }

  void PackKeys(int64_t begin, int64_t end) {
    begin_ = begin;
    fallback_key_count_ = 0;
    for (int64_t key = begin; key < end; key += kTileSide) {
      const int64_t group = (key - begin) / kSide, half = (key - begin) / kTileSide % 2;
      const int count = static_cast<int>(std::min<int64_t>(kTileSide, end - key));
      std::uint32_t fallback = 0;
      for (int64_t k = 0; k < head_dim_; k += kChunk) {
        HWY_ALIGN std::uint32_t rows[kTerms * kTileSize];  // the tiles, transposed
        if (count < kTileSide) std::fill_n(rows, kTerms * kTileSize, 0u);
        for (int j = 0; j < count; ++j) {
          const S* row = args_.key.at(block_.batch, block_.kv_head, key + j);
          const auto x = LoadPadded(row, k, head_dim_), y = LoadPadded(row, k + kLanes<float>, head_dim_);
          if (!Splits(x, y)) fallback |= 1u << j;
          StoreSplit<kTerms>(x, y, rows + j * kTileSide, kTileSize);
        }
        std::uint32_t* tiles = key_ + (group * Chunks(head_dim_) + k / kChunk) * kChunkSize<kTerms> + half * kTileSize;
        for (int term = 0; term < kTerms; ++term) TransposeTile(rows + term * kTileSize, tiles + term * 2 * kTileSize);
      }
      for (int j = 0; j < count; ++j) {
        if (fallback >> j & 1) fallback_keys_[fallback_key_count_++] = static_cast<std::int16_t>(key - begin + j);
      }
    }
    const int64_t groups = (end - begin + kSide - 1) / kSide;
    if ((end - begin - 1) / kTileSide % 2 == 0) {  // the last group's second half
      for (int64_t chunk = 0; chunk < Chunks(head_dim_); ++chunk) {
        std::uint32_t* tiles = key_ + ((groups - 1) * Chunks(head_dim_) + chunk) * kChunkSize<kTerms> + kTileSize;
        for (int term = 0; term < kTerms; ++term) std::fill_n(tiles + term * 2 * kTileSize, kTileSize, 0u);
      }
    }
  }

  void PackValues(int64_t begin, int64_t end) {
    begin_ = begin;
    // The whole key block decides, not the range of it that these queries keep.
    const int64_t block_begin = begin / kKeys * kKeys, block_end = std::min(block_begin + kKeys, args_.key.shape[2]);
    auto max = hn::Zero(Tag<std::int32_t>());
    for (int64_t key = block_begin; key < block_end; ++key) {
      const S* row = args_.value.at(block_.batch, block_.kv_head, key);
      for (int64_t i = 0; i < value_dim_; i += kLanes<float>) {
        max = hn::Max(max, Magnitudes(LoadPadded(row, i, value_dim_)));
      }
    }
    values_split_ = AllBelow(max, 0x1p110f);
    if (!values_split_) return;
    const Tag<float> d;
    for (int64_t key = begin; key < end; key += kChunk) {
      for (int64_t column = 0; column < value_width_; column += kTileSide) {
        std::uint32_t* tiles = Value(column / kSide, (key - begin) / kChunk) + column / kTileSide % 2 * kTileSize;
        for (int i = 0; i < kTileSide; ++i) {
          const auto at = [&](int64_t j) HWY_ATTR {
            if (j >= end) return hn::Zero(d);
            return LoadPadded(args_.value.at(block_.batch, block_.kv_head, j), column, value_dim_);
          };
          StoreSplit<kTerms>(at(key + i), at(key + i + kTileSide), tiles + i * kTileSide, 2 * kTileSize);
        }
      }
    }
  }

  // Chunk products in Score and in MultiplyValues.
  int64_t ScoreChunks(int64_t from, int64_t to) const { return (to - from + kSide - 1) / kSide * Chunks(head_dim_); }
  int64_t ValueChunks(int64_t from, int64_t to) const {
    return from < to ? value_width_ / kSide * (Chunks(to) - from / kChunk) : 0;
  }

  template <class... Work>
  void Score(const Tile<kRows>& tile, int64_t from, int64_t to, int64_t /*begin*/, bool /*fused*/, float* scores,
             float* /*max*/, Work&&... work) const {
    const bool lower = tile.height > kTileSide;
    const int64_t chunks = Chunks(head_dim_);
    if (Backend::kFinishes) std::fill_n(lane_max_, kSide * kLanes<float>, kMinusInf<float>);
    for (int64_t column = from; column < to; column += kSide) {
      const std::uint32_t* key = key_ + column / kSide * chunks * kChunkSize<kTerms>;
      if constexpr (Backend::kFinishes) {
        const Tag<float> d;
        const auto scale = hn::Set(d, scale_first_ ? 1.0f : scale_);
        Backend::template Multiply<kTerms>(Query(tile), key, chunks, lower, [&](int r, auto left, auto right) HWY_ATTR {
          float* const max = lane_max_ + r * kLanes<float>;
          left = hn::Mul(left, scale), right = hn::Mul(right, scale);
          hn::Store(left, d, scores + r * kStride + column);
          hn::Store(right, d, scores + r * kStride + column + kLanes<float>);
          hn::Store(hn::Max(hn::Max(left, right), hn::Load(d, max)), d, max);
        });
      } else {
        Backend::template Multiply<kTerms>(Query(tile), key, chunks, lower, scores + column, kStride, work...);
      }
    }
  }

  void FinishScores(const Tile<kRows>& tile, int64_t from, int64_t to, int64_t begin, bool fused, float* scores,
                    float* max_scores) const {
    if (Backend::kFinishes && !HasFallback(tile) && !fused && to % kChunk == 0) {
      return MaxScores(tile, 0, kLanes<float>, lane_max_, max_scores, kLanes<float>);
    }
    AdjustScores(tile, from, to, begin, fused, scores);
    MaxScores(tile, from, to, scores, max_scores);
  }

  // Scales the scores of 16-bit types, recomputes fallback scores, applies the fused modifiers, and sets scores beyond
  // the last key to -inf.
  void AdjustScores(const Tile<kRows>& tile, int64_t from, int64_t to, int64_t begin, bool fused, float* scores) const {
    if (!scale_first_ && !Backend::kFinishes) {
      for (int r = 0; r < tile.rows; ++r) {
        ScaleRow(scores + r * kStride + from, to - from, scale_, scores + r * kStride + from);
      }
    }
    if (HasFallback(tile)) {
      for (int r = 0; r < tile.rows; ++r) ComputeFallbackScores(tile, r, from, to, scores + r * kStride);
    }
    if (fused) {
      for (int r = 0; r < tile.rows; ++r) {
        ModifyScores(fused_.ForRow(tile.row[r], begin), from, to, scores + r * kStride);
      }
    }
    if (to % kChunk != 0) {
      for (int r = 0; r < tile.rows; ++r) DropBeyond(to, scores + r * kStride);
    }
  }

  // The max score of each row; 0 for rows that only fill the tile.
  static void MaxScores(const Tile<kRows>& tile, int64_t from, int64_t to, const float* scores, float* max_scores,
                        int64_t stride = kStride) {
    const Tag<float> d;
    for (int r = 0; r < tile.rows; r += 4) {
      const float* row = scores + r * stride;
      auto max0 = hn::Load(d, row + from), max1 = hn::Load(d, row + stride + from);
      auto max2 = hn::Load(d, row + 2 * stride + from), max3 = hn::Load(d, row + 3 * stride + from);
      for (int64_t j = from + kLanes<float>; j < to; j += kLanes<float>) {
        max0 = hn::Max(max0, hn::Load(d, row + j));
        max1 = hn::Max(max1, hn::Load(d, row + stride + j));
        max2 = hn::Max(max2, hn::Load(d, row + 2 * stride + j));
        max3 = hn::Max(max3, hn::Load(d, row + 3 * stride + j));
      }
      Reduce4(
          max0, max1, max2, max3, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); }, max_scores + r);
    }
    std::fill(max_scores + tile.rows, max_scores + kRows, 0.0f);
  }

  // Splits the weights [from, to) of row r.
  void PrepareWeights(int r, int64_t from, int64_t to, const float* weights, int buffer) const {
    if (!values_split_) return;
    const int64_t first = from / kChunk;
    std::uint32_t* row = Weights(r, buffer);
    for (int64_t j = first * kChunk; j < to; j += kChunk, row += kChunkSize<kTerms>) {
      StoreSplit<kTerms, kTerms == 3>(LoadPadded(weights, j, to), LoadPadded(weights, j + kLanes<float>, to), row,
                                      2 * kTileSize);
    }
  }

  // Whether the packed values are split; else the second product is computed in float32.
  bool ValuesSplit() const { return values_split_; }

  // The split weights of row r: its first chunk; the next ones are kChunkSize apart.
  std::uint32_t* Weights(int r, int buffer) const { return weights_ + buffer * kWeightsSize + r * kTileSide; }

  // Product() = a tile's weights times the values, if ValuesSplit().
  template <class... Work>
  void MultiplyValues(const Tile<kRows>& tile, int64_t from, int64_t to, int buffer, Work&&... work) const {
    const int64_t first = from / kChunk, chunks = Chunks(to) - first;
    const bool lower = tile.height > kTileSide;
    for (int64_t column = 0; column < value_width_; column += kSide) {
      Backend::template Multiply<kTerms>(Weights(0, buffer), Value(column / kSide, first), chunks, lower,
                                         product_ + column, value_width_, work...);
    }
  }
  const float* Product() const { return product_; }  // [kRows][value_width]

  // output = output * rescale + weights times values.
  void AddValues(const Tile<kRows>& tile, int64_t from, int64_t to, const float* weights, int buffer,
                 const float* rescale, float* output) const {
    if (!values_split_) return AddValuesInFloat32(tile, from, to, weights, rescale, output);
    const Tag<float> d;
    const int64_t first = from / kChunk, chunks = Chunks(to) - first;
    for (int64_t column = 0; column < value_width_; column += kSide) {
      Backend::template Multiply<kTerms>(Weights(0, buffer), Value(column / kSide, first), chunks,
                                         tile.height > kTileSide, [&](int r, auto left, auto right) HWY_ATTR {
                                           float* const row = output + r * value_width_ + column;
                                           const auto factor = hn::Set(d, rescale[r]);
                                           hn::Store(hn::MulAdd(hn::Load(d, row), factor, left), d, row);
                                           hn::Store(hn::MulAdd(hn::Load(d, row + kLanes<float>), factor, right), d,
                                                     row + kLanes<float>);
                                         });
    }
  }

  // The same in float32, for values that do not split. Keys of weight 0 are skipped, because 0 * NaN is NaN.
  void AddValuesInFloat32(const Tile<kRows>& tile, int64_t from, int64_t to, const float* weights, const float* rescale,
                          float* output) const {
    const Tag<float> d;
    for (int r = 0; r < tile.rows; ++r) {
      for (int64_t i = 0; i < value_dim_; i += kLanes<float>) {
        auto sum = hn::Zero(d);
        for (int64_t j = from; j < to; ++j) {
          const float weight = weights[r * kStride + j];
          if (weight == 0.0f) continue;
          const S* row = args_.value.at(block_.batch, block_.kv_head, begin_ + j);
          sum = hn::MulAdd(hn::Set(d, weight), LoadPadded(row, i, value_dim_), sum);
        }
        float* to_output = output + r * value_width_ + i;
        hn::Store(hn::MulAdd(hn::Load(d, to_output), hn::Set(d, rescale[r]), sum), d, to_output);
      }
    }
  }

 private:
  static constexpr int64_t kWeightsSize = Chunks(kKeys) * kChunkSize<kTerms>;

  static HWY_INLINE bool Splits(hn::Vec<Tag<float>> x, hn::Vec<Tag<float>> y) {
    return AllBelow(hn::Max(Magnitudes(x), Magnitudes(y)), 0x1p126f);
  }

  static bool PowerOfTwo(float x) {
    int exponent;
    return std::frexp(std::abs(x), &exponent) == 0.5f;
  }

  // Whether the tile or the packed keys have fallback rows: queries or keys whose scores are computed in float32.
  bool HasFallback(const Tile<kRows>& tile) const {
    return fallback_key_count_ > 0 || fallback_rows_[tile.first_row / kRows] != 0;
  }

  std::uint32_t* Query(const Tile<kRows>& tile) const {
    return query_ + tile.first_row / kRows * Chunks(head_dim_) * kChunkSize<kTerms>;
  }

  std::uint32_t* Value(int64_t column_group, int64_t chunk) const {
    return value_ + (column_group * Chunks(kKeys) + chunk) * kChunkSize<kTerms>;
  }

  // Scores from `to` to the end of its chunk become -inf.
  static HWY_INLINE void DropBeyond(int64_t to, float* scores) {
    const Tag<float> d;
    const int64_t chunk = to / kChunk * kChunk;
    for (int64_t j = chunk; j < chunk + kChunk; j += kLanes<float>) {
      const auto kept = hn::Lt(hn::Iota(d, static_cast<float>(j)), hn::Set(d, static_cast<float>(to)));
      hn::Store(hn::IfThenElse(kept, hn::Load(d, scores + j), hn::Set(d, kMinusInf<float>)), d, scores + j);
    }
  }

  // Scores of row r whose query or key does not split.
  void ComputeFallbackScores(const Tile<kRows>& tile, int r, int64_t from, int64_t to, float* scores) const {
    if (fallback_rows_[tile.first_row / kRows] >> r & 1) {
      for (int64_t j = from; j < to; ++j) scores[j] = Float32Score(tile.row[r], j);
    }
    for (int n = 0; n < fallback_key_count_; ++n) {
      const int64_t j = fallback_keys_[n];
      if (from <= j && j < to) scores[j] = Float32Score(tile.row[r], j);
    }
  }

  float Float32Score(const Row& row, int64_t j) const {
    const Tag<float> d;
    const S* query = args_.query.at(block_.batch, row.head, row.query);
    const S* key = args_.key.at(block_.batch, block_.kv_head, begin_ + j);
    const auto scale = hn::Set(d, scale_);
    auto sum = hn::Zero(d);
    for (int64_t k = 0; k < head_dim_; k += kLanes<float>) {
      sum = hn::MulAdd(hn::Mul(LoadPadded(query, k, head_dim_), scale), LoadPadded(key, k, head_dim_), sum);
    }
    return hn::GetLane(hn::SumOfLanes(d, sum));
  }

  const AttentionArgs<S>& args_;
  const AttentionBlock block_;
  const float scale_;
  const bool scale_first_;  // scales the queries before the split; else scores, as the split of 16-bit types is exact
  const int64_t head_dim_, value_dim_, value_width_;
  const FusedModifiers<float> fused_;
  std::uint32_t* const query_;          // tiles of rows of [chunk][term][2 tiles: 16 rows][16 words]
  std::uint32_t* const key_;            // groups of 32 keys of [chunk][term][2 tiles: 16 words][16 keys]
  std::uint32_t* const value_;          // groups of 32 columns of [chunk][term][2 tiles: 16 words][16 columns]
  std::uint32_t* const weights_;        // [kStages][chunk][term][2 tiles: 16 rows][16 words]
  float* const product_;                // [32][value_width], unless the backend hands products over in registers
  float* const lane_max_;               // [32][16], if it does: lanewise maxima of a tile's scores
  std::uint32_t* const fallback_rows_;  // [tiles], a bit for each row that does not split
  std::int16_t fallback_keys_[kKeys];   // keys of the packed block that do not split
  int fallback_key_count_ = 0;
  int64_t begin_ = 0;  // of the packed block
  bool values_split_ = true;
};

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
