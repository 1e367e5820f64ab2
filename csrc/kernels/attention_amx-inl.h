// The products of attention on tiles of bfloat16 (amx.h), to the accuracy of float32.
//
// A float32 has 24 bits, a bfloat16 8: x = x0 + x1 + x2 exactly, each the rest rounded to 8 bits. Of the nine products
// of such sums six count, those with i + j < 3; the others are below 2^-25 of x y. All six are sums of products over a
// longer depth, added up in float32 by the tile unit, the smallest first. With two parts three products are left
// (2^-16), with one part one (2^-8).
//
// Layout: 32 numbers of the depth are a chunk, whose n-th and (n + 16)-th share a 32-bit word: packing is shifts and
// masks. Each part of a chunk is a tile of 1 KB, and all products take 2 x 2 tiles at a time: 32 rows by 32 columns,
// three loads for four multiplications.
//
// What bfloat16 cannot hold goes by float32, one row or key at a time: queries and keys that are not finite or beyond
// 2^126, and blocks of values with any such number. Which these are does not depend on the block of queries.
// Where a number's parts are subnormal (below 2^-110 in the third) they count as 0.

#if defined(HEADWISE_KERNELS_ATTENTION_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_KERNELS_ATTENTION_AMX_INL_H_
#undef HEADWISE_KERNELS_ATTENTION_AMX_INL_H_
#else
#define HEADWISE_KERNELS_ATTENTION_AMX_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/amx.h"
#include "kernels/attention-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/scores-inl.h"
#include "runtime/scratch.h"

#if HEADWISE_AMX && HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Numbers of the depth in a chunk, rows and columns of 2 x 2 tiles, words of a tile.
constexpr int kChunk = 32;
constexpr int kSide = 2 * amx::kTileRows;
constexpr int kTileSize = amx::kTileRows * amx::kTileWords;

template <int kParts>
constexpr int64_t kChunkSize = kParts * 2 * kTileSize;

constexpr int64_t Chunks(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// The parts of x (numbers 0 to 15 of a chunk) and y (16 to 31), a vector of words each, part_stride words apart.
template <int kParts, class V>
HWY_INLINE void StoreParts(V x, V y, std::uint32_t* to, int64_t part_stride) {
  const Tag<float> d;
  const Tag<std::uint32_t> bits;
  const auto upper = hn::Set(bits, 0xFFFF0000u), half = hn::Set(bits, 0x8000u);
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    const auto x_top = hn::And(hn::Add(hn::BitCast(bits, x), half), upper);
    const auto y_top = hn::And(hn::Add(hn::BitCast(bits, y), half), upper);
    hn::StoreU(hn::Or(hn::ShiftRight<16>(x_top), y_top), bits, to + part * part_stride);
    x = hn::Sub(x, hn::BitCast(d, x_top));
    y = hn::Sub(y, hn::BitCast(d, y_top));
  }
}

// Tiles 0 to 3 = A B over `chunks` chunks of the depth. A and B: [chunk][part][2 tiles]. With fewer than 17 rows the
// lower tiles, 2 and 3, are left out.
template <int kParts>
HWY_INLINE void MultiplyChunks(const std::uint32_t* a, const std::uint32_t* b, int64_t chunks, bool lower) {
  constexpr int64_t kRowBytes = amx::kTileWords * 4;
  amx::Zero<0>(), amx::Zero<1>(), amx::Zero<2>(), amx::Zero<3>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += kChunkSize<kParts>, b += kChunkSize<kParts>) {
    // The smallest products first; a part of B is loaded once.
#pragma GCC unroll 3
    for (int j = kParts - 1; j >= 0; --j) {
      amx::Load<6>(b + j * 2 * kTileSize, kRowBytes);
      amx::Load<7>(b + (j * 2 + 1) * kTileSize, kRowBytes);
#pragma GCC unroll 3
      for (int i = kParts - 1 - j; i >= 0; --i) {
        amx::Load<4>(a + i * 2 * kTileSize, kRowBytes);
        amx::MultiplyAdd<0, 4, 6>();
        amx::MultiplyAdd<1, 4, 7>();
        if (!lower) continue;
        amx::Load<5>(a + (i * 2 + 1) * kTileSize, kRowBytes);
        amx::MultiplyAdd<2, 5, 6>();
        amx::MultiplyAdd<3, 5, 7>();
      }
    }
  }
}

// to[32, 32] = tiles 0 to 3, rows `stride` floats apart.
HWY_INLINE void StoreTiles(float* to, int64_t stride, bool lower) {
  const int64_t row_bytes = stride * 4;
  amx::Store<0>(to, row_bytes);
  amx::Store<1>(to + amx::kTileRows, row_bytes);
  if (lower) {
    amx::Store<2>(to + amx::kTileRows * stride, row_bytes);
    amx::Store<3>(to + amx::kTileRows * stride + amx::kTileRows, row_bytes);
  }
}

// Whether bfloat16 parts can hold every number of a vector.
template <class V>
HWY_INLINE bool Splits(V x) {
  const Tag<float> d;
  return hn::AllTrue(d, hn::Lt(hn::Abs(x), hn::Set(d, 0x1p126f)));
}

// Numbers [at, at + 16) of a row of n; 0 beyond its end.
HWY_INLINE hn::Vec<Tag<float>> LoadPart(const float* row, int64_t at, int64_t n) {
  const Tag<float> d;
  if (at + kLanes<float> <= n) return hn::LoadU(d, row + at);
  return at < n ? FirstLanes{n - at}.Load(d, row + at) : hn::Zero(d);
}

template <int kParts>
class AmxProducts {
 public:
  using Element = float;
  static constexpr int kRows = kSide;
  static constexpr int kKeys = 128;
  static constexpr int kStride = kKeys + 16;

  static int Height(int rows) { return rows <= amx::kTileRows ? amx::kTileRows : kRows; }
  static int64_t ValueWidth(int64_t value_dim) { return (value_dim + kSide - 1) / kSide * kSide; }

  AmxProducts(Arena& arena, const AttentionArgs<float>& args, const AttentionBlock& block, int64_t padded_rows)
      : args_(args),
        block_(block),
        head_dim_(args.query.shape[3]),
        value_dim_(args.value.shape[3]),
        value_width_(ValueWidth(value_dim_)),
        query_(arena.Take<std::uint32_t>(padded_rows / kRows * Chunks(head_dim_) * kChunkSize<kParts>)),
        key_(arena.Take<std::uint32_t>(kKeys / kSide * Chunks(head_dim_) * kChunkSize<kParts>)),
        value_(arena.Take<std::uint32_t>(value_width_ / kSide * Chunks(kKeys) * kChunkSize<kParts>)),
        weights_(arena.Take<std::uint32_t>(Chunks(kKeys) * kChunkSize<kParts>)),
        product_(arena.Take<float>(kSide * kSide)),
        odd_rows_(arena.Take<std::uint32_t>(padded_rows / kRows)) {}

  void PackQueries(const Tile<kRows>& tile) const {
    const Tag<float> d;
    const auto scale = hn::Set(d, static_cast<float>(args_.scale));
    std::uint32_t* packed = Query(tile);
    std::uint32_t odd = 0;
    std::fill_n(packed, Chunks(head_dim_) * kChunkSize<kParts>, 0u);
    for (int r = 0; r < tile.rows; ++r) {
      const float* row = args_.query.at(block_.batch, tile.row[r].head, tile.row[r].query);
      for (int64_t k = 0; k < head_dim_; k += kChunk) {
        const auto x = hn::Mul(LoadPart(row, k, head_dim_), scale);
        const auto y = hn::Mul(LoadPart(row, k + kLanes<float>, head_dim_), scale);
        if (!Splits(x) || !Splits(y)) odd |= 1u << r;
        StoreParts<kParts>(x, y, packed + k / kChunk * kChunkSize<kParts> + r * amx::kTileWords, 2 * kTileSize);
      }
    }
    odd_rows_[tile.first_row / kRows] = odd;
  }

  void PackKeys(int64_t begin, int64_t end) {
    begin_ = begin;
    odd_key_count_ = 0;
    for (int64_t key = begin; key < end; key += amx::kTileRows) {
      const int64_t group = (key - begin) / kSide, half = (key - begin) / amx::kTileRows % 2;
      const int count = static_cast<int>(std::min<int64_t>(amx::kTileRows, end - key));
      std::uint32_t odd = 0;
      for (int64_t k = 0; k < head_dim_; k += kChunk) {
        HWY_ALIGN std::uint32_t rows[kParts * kTileSize];  // the tiles, transposed
        if (count < amx::kTileRows) std::fill_n(rows, kParts * kTileSize, 0u);
        for (int j = 0; j < count; ++j) {
          const float* row = args_.key.at(block_.batch, block_.kv_head, key + j);
          const auto x = LoadPart(row, k, head_dim_), y = LoadPart(row, k + kLanes<float>, head_dim_);
          if (!Splits(x) || !Splits(y)) odd |= 1u << j;
          StoreParts<kParts>(x, y, rows + j * amx::kTileWords, kTileSize);
        }
        std::uint32_t* tiles = key_ + (group * Chunks(head_dim_) + k / kChunk) * kChunkSize<kParts> + half * kTileSize;
        for (int part = 0; part < kParts; ++part) Transpose(rows + part * kTileSize, tiles + part * 2 * kTileSize);
      }
      for (int j = 0; j < count; ++j) {
        if (odd >> j & 1) odd_keys_[odd_key_count_++] = static_cast<std::int16_t>(key - begin + j);
      }
    }
    const int64_t groups = (end - begin + kSide - 1) / kSide;
    if ((end - begin - 1) / amx::kTileRows % 2 == 0) {  // the last group's second half
      for (int64_t chunk = 0; chunk < Chunks(head_dim_); ++chunk) {
        std::uint32_t* tiles = key_ + ((groups - 1) * Chunks(head_dim_) + chunk) * kChunkSize<kParts> + kTileSize;
        for (int part = 0; part < kParts; ++part) std::fill_n(tiles + part * 2 * kTileSize, kTileSize, 0u);
      }
    }
  }

  void PackValues(int64_t begin, int64_t end) {
    begin_ = begin;
    // The whole block, whatever part of it these queries keep.
    const int64_t block_begin = begin / kKeys * kKeys, block_end = std::min(block_begin + kKeys, args_.key.shape[2]);
    values_split_ = true;
    for (int64_t key = block_begin; key < block_end; ++key) {
      const float* row = args_.value.at(block_.batch, block_.kv_head, key);
      for (int64_t i = 0; i < value_dim_; i += kLanes<float>) values_split_ &= Splits(LoadPart(row, i, value_dim_));
    }
    if (!values_split_) return;
    const Tag<float> d;
    for (int64_t key = begin; key < end; key += kChunk) {
      for (int64_t column = 0; column < value_width_; column += amx::kTileRows) {
        std::uint32_t* tiles = Value(column / kSide, (key - begin) / kChunk) + column / amx::kTileRows % 2 * kTileSize;
        for (int i = 0; i < amx::kTileRows; ++i) {
          const auto at = [&](int64_t j) HWY_ATTR {
            if (j >= end) return hn::Zero(d);
            return LoadPart(args_.value.at(block_.batch, block_.kv_head, j), column, value_dim_);
          };
          StoreParts<kParts>(at(key + i), at(key + i + amx::kTileRows), tiles + i * amx::kTileWords, 2 * kTileSize);
        }
      }
    }
  }

  void Score(const Tile<kRows>& tile, int64_t from, int64_t to, int64_t begin, bool alibi, float* scores,
             float* greatest) const {
    const bool lower = tile.height > amx::kTileRows;
    const int64_t chunks = Chunks(head_dim_);
    for (int64_t column = from; column < to; column += kSide) {
      MultiplyChunks<kParts>(Query(tile), key_ + column / kSide * chunks * kChunkSize<kParts>, chunks, lower);
      StoreTiles(scores + column, kStride, lower);
    }
    ScoreOddOnes(tile, from, to, scores);
    std::fill_n(greatest, kRows, kMinusInf<float>);
    for (int r = 0; r < tile.rows; ++r) {
      const float slope = alibi ? args_.slopes[tile.row[r].head] : 0.0f;
      greatest[r] = FinishRow(scores + r * kStride, from, to, slope, begin - tile.row[r].query - args_.offset);
    }
  }

  void AddValues(const Tile<kRows>& tile, int64_t from, int64_t to, const float* weights, const float* rescale,
                 float* output) const {
    if (!values_split_) return AddPlainly(tile, from, to, weights, rescale, output);
    const Tag<float> d;
    const int64_t first = from / kChunk, chunks = Chunks(to) - first;
    SplitWeights(tile, first, to, weights);
    const bool lower = tile.height > amx::kTileRows;
    for (int64_t column = 0; column < value_width_; column += kSide) {
      MultiplyChunks<kParts>(weights_, Value(column / kSide, first), chunks, lower);
      StoreTiles(product_, kSide, lower);
      for (int r = 0; r < tile.rows; ++r) {
        const auto factor = hn::Set(d, rescale[r]);
        for (int64_t i = 0; i < kSide; i += kLanes<float>) {
          float* to_output = output + r * value_width_ + column + i;
          const auto sum = hn::Load(d, product_ + r * kSide + i);
          hn::Store(hn::MulAdd(hn::Load(d, to_output), factor, sum), d, to_output);
        }
      }
    }
  }

 private:
  std::uint32_t* Query(const Tile<kRows>& tile) const {
    return query_ + tile.first_row / kRows * Chunks(head_dim_) * kChunkSize<kParts>;
  }

  std::uint32_t* Value(int64_t column_group, int64_t chunk) const {
    return value_ + (column_group * Chunks(kKeys) + chunk) * kChunkSize<kParts>;
  }

  static HWY_INLINE void Transpose(const std::uint32_t* in, std::uint32_t* out) {
    for (int64_t k = 0; k < amx::kTileWords; k += 4) {
      TransposeBlocks(Tag<float>(), reinterpret_cast<const float*>(in) + k, amx::kTileWords,
                      reinterpret_cast<float*>(out) + k * amx::kTileRows, amx::kTileRows);
    }
  }

  // Adds ALiBi, drops what is beyond the keys, and finds the largest score. `distance`: of key 0 from the query.
  static HWY_INLINE float FinishRow(float* scores, int64_t from, int64_t to, float slope, int64_t distance) {
    const Tag<float> d;
    auto max = hn::Set(d, kMinusInf<float>);
    const auto slopes = hn::Set(d, slope);
    for (int64_t j = from; j < to; j += kLanes<float>) {
      auto score = hn::LoadU(d, scores + j);
      if (slope != 0.0f) score = hn::NegMulAdd(slopes, hn::Abs(hn::Iota(d, static_cast<float>(distance + j))), score);
      if (to - j < kLanes<float>) score = FirstLanes{to - j}.Or(d, score, hn::Set(d, kMinusInf<float>));
      if (slope != 0.0f || to - j < kLanes<float>) hn::StoreU(score, d, scores + j);
      max = hn::Max(max, score);
    }
    return GreatestLane(d, max);
  }

  // Scores of queries and keys that do not split, in float32.
  void ScoreOddOnes(const Tile<kRows>& tile, int64_t from, int64_t to, float* scores) const {
    const std::uint32_t odd = odd_rows_[tile.first_row / kRows];
    if (odd == 0 && odd_key_count_ == 0) return;
    for (int r = 0; r < tile.rows; ++r) {
      if (odd >> r & 1) {
        for (int64_t j = from; j < to; ++j) scores[r * kStride + j] = PlainScore(tile.row[r], j);
      }
      for (int n = 0; n < odd_key_count_; ++n) {
        const int64_t j = odd_keys_[n];
        if (from <= j && j < to) scores[r * kStride + j] = PlainScore(tile.row[r], j);
      }
    }
  }

  float PlainScore(const Row& row, int64_t j) const {
    const Tag<float> d;
    const float* query = args_.query.at(block_.batch, row.head, row.query);
    const float* key = args_.key.at(block_.batch, block_.kv_head, begin_ + j);
    const auto scale = hn::Set(d, static_cast<float>(args_.scale));
    auto sum = hn::Zero(d);
    for (int64_t k = 0; k < head_dim_; k += kLanes<float>) {
      sum = hn::MulAdd(hn::Mul(LoadPart(query, k, head_dim_), scale), LoadPart(key, k, head_dim_), sum);
    }
    return hn::GetLane(hn::SumOfLanes(d, sum));
  }

  // The tile's weights from chunk `first` to key `to` in parts.
  void SplitWeights(const Tile<kRows>& tile, int64_t first, int64_t to, const float* weights) const {
    for (int64_t chunk = first; chunk < Chunks(to); ++chunk) {
      const int64_t j = chunk * kChunk;
      std::uint32_t* tiles = weights_ + (chunk - first) * kChunkSize<kParts>;
      for (int r = 0; r < tile.rows; ++r) {
        const float* row = weights + r * kStride;
        StoreParts<kParts>(LoadPart(row, j, to), LoadPart(row, j + kLanes<float>, to), tiles + r * amx::kTileWords,
                           2 * kTileSize);
      }
    }
  }

  // AddValues in float32, for values that do not split. A key of weight 0 is passed over, for 0 * NaN is not 0.
  void AddPlainly(const Tile<kRows>& tile, int64_t from, int64_t to, const float* weights, const float* rescale,
                  float* output) const {
    const Tag<float> d;
    for (int r = 0; r < tile.rows; ++r) {
      for (int64_t i = 0; i < value_dim_; i += kLanes<float>) {
        auto sum = hn::Zero(d);
        for (int64_t j = from; j < to; ++j) {
          const float weight = weights[r * kStride + j];
          if (weight == 0.0f) continue;
          const float* row = args_.value.at(block_.batch, block_.kv_head, begin_ + j);
          sum = hn::MulAdd(hn::Set(d, weight), LoadPart(row, i, value_dim_), sum);
        }
        float* to_output = output + r * value_width_ + i;
        hn::Store(hn::MulAdd(hn::Load(d, to_output), hn::Set(d, rescale[r]), sum), d, to_output);
      }
    }
  }

  const AttentionArgs<float>& args_;
  const AttentionBlock block_;
  const int64_t head_dim_, value_dim_, value_width_;
  std::uint32_t* const query_;     // tiles of rows of [chunk][part][2 tiles: 16 rows][16 words]
  std::uint32_t* const key_;       // groups of 32 keys of [chunk][part][2 tiles: 16 words][16 keys]
  std::uint32_t* const value_;     // groups of 32 columns of [chunk][part][2 tiles: 16 words][16 columns]
  std::uint32_t* const weights_;   // [chunk][part][2 tiles: 16 rows][16 words]
  float* const product_;           // [32][32]
  std::uint32_t* const odd_rows_;  // for each tile of rows, a bit for each row that does not split
  std::int16_t odd_keys_[kKeys];   // keys of the packed block that do not split, counted from its first
  int odd_key_count_ = 0;
  int64_t begin_ = 0;  // of the packed block
  bool values_split_ = true;
};

template <int kParts>
void AmxAttentionBlock(const AttentionArgs<float>& args, const AttentionBlock& block, std::byte* scratch) {
  const amx::Tiles tiles;
  AttentionRun<AmxProducts<kParts>>(args, block, scratch).Run();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();
#endif

#endif  // per-target include guard
