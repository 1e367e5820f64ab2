// The backward pass of attention for a chunk of keys, on one core (Dao et al. 2022, arXiv:2205.14135, algorithm 4).
//
// RunBackward goes through the chunk in passes: keys and values that fit in L2 with the sums of their gradients. A pass
// packs them once and meets every block of 96 queries, which is packed in its turn. For each block of 96 keys (float64:
// 48), BlockPair computes
//   1. scores = scale * query key^T, modifiers (modifiers/), P = exp(scores - lse);
//   2. dP = d_output value^T, dropout, dS = P * (dP - delta), gradients of biases and slopes from dS;
//   3. d_value += P^T d_output, d_key += dS^T query, d_query += dS key (products-inl.h).
// The steps after a product go through its tiles of scores, or through whole rows where an option needs them
// (rows_apart_). The softcap's derivative multiplies dS between 2 and 3. `scale` multiplies d_key and d_query once,
// when they are stored.
//
// Windows skip block pairs, and tiles of queries in the pairs that they cut. A pair (i, j) that is not kept has P = dS
// = 0 by selection, and blocks that hold NaN or infinity skip the terms of such pairs (AddKeptTerms).
//
// Cost: 6 head_dim + 4 value_dim operations per score, and about 20 vector operations per vector of scores.
// Scratch: one pass and one block of queries, and the sums of d_query of a head; nothing grows with the scores.

#if defined(HEADWISE_ATTENTION_BACKWARD_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_BACKWARD_KERNEL_INL_H_
#undef HEADWISE_ATTENTION_BACKWARD_KERNEL_INL_H_
#else
#define HEADWISE_ATTENTION_BACKWARD_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/backward/delta-inl.h"
#include "attention/backward/kernel.h"
#include "attention/backward/products-inl.h"
#include "attention/backward/query_gradients-inl.h"
#include "attention/backward/score_gradients-inl.h"
#include "attention/backward/scratch-inl.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// One chunk at work. S is the element type of the arrays.
template <typename S>
class BackwardRun {
  using T = Accumulator<S>;

 public:
  BackwardRun(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients, const BackwardChunk& chunk,
              int64_t entry, const BackwardPartials<S>& partials, std::byte* memory)
      : args_(args),
        gradients_(gradients),
        chunk_(chunk),
        entry_(entry),
        partials_(partials),
        arena_(memory),
        s_(arena_, args, gradients),
        group_(args.query.shape[1] / args.key.shape[1]),
        queries_(args.query.shape[2]),
        modifiers_(ModifiersOf(args.spec)),
        pairs_(MultipliesPairs(args)),
        score_depth_(Depth(s_.head_dim)),
        value_depth_(Depth(s_.value_dim)),
        score_gradients_(args, gradients, partials, chunk.batch, entry),
        stores_bias_(score_gradients_.StoresBias()),
        rows_apart_(score_gradients_.NeedsRows()) {}

  void Run() {
    StartQueryGradients();
    if (partials_.d_alibi_slopes) std::fill_n(s_.slopes, group_, 0.0);
    KeyRange keys{0, 0};
    if (queries_ > 0) keys = KeysOf(args_, chunk_.batch, 0, queries_);
    for (int64_t begin = chunk_.key_begin; begin < chunk_.key_end; begin += s_.pass_keys) {
      const int64_t end = std::min(chunk_.key_end, begin + s_.pass_keys);
      std::fill_n(s_.d_key, (s_.pass_keys + kTileRows) * s_.head_width, T{0});
      std::fill_n(s_.d_value, (s_.pass_keys + kTileRows) * s_.value_width, T{0});
      const int64_t low = std::max(begin, keys.begin / kBackwardKeys<T> * kBackwardKeys<T>);
      if (!RunPass(begin, end, low, std::min(end, keys.end))) return;
      StoreKeyGradients(begin, end);
    }
    for (int64_t member = 0; member < group_; ++member) {
      if (partials_.d_alibi_slopes) partials_.d_alibi_slopes[member] = -s_.slopes[member];
      if (partials_.d_sinks) {
        partials_.d_sinks[member] = SinkGradient(args_, gradients_, chunk_.batch, entry_, Head(member));
      }
    }
  }

 private:
  int64_t Head(int64_t member) const { return chunk_.kv_head * group_ + member; }
  T Scale() const { return static_cast<T>(args_.spec.scale); }

  struct Rows {
    const T* data;
    int64_t stride;
  };
  // Rows [first, first + count) of a head, widened from 16-bit types.
  Rows Wide(const View<const S, 4>& array, int64_t batch, int64_t head, int64_t first, int64_t count) const {
    if constexpr (kIs16Bit<S>) {
      const int64_t width = array.shape[3];
      for (int64_t i = 0; i < count; ++i) Widen(array.at(batch, head, first + i), width, s_.wide + i * width);
      return {s_.wide, width};
    } else {
      return {array.at(batch, head, first), array.stride[2]};
    }
  }

  // The rows as pairs of bf16 in words, with a 0 behind an odd width.
  Rows Pairs(const View<const S, 4>& array, int64_t batch, int64_t head, int64_t first, int64_t count) const {
    const auto width = static_cast<std::size_t>(array.shape[3]);
    const int64_t words = (array.shape[3] + 1) / 2;
    for (int64_t i = 0; i < count; ++i) {
      if (width % 2 != 0) s_.wide[(i + 1) * words - 1] = T{0};
      std::memcpy(s_.wide + i * words, array.at(batch, head, first + i), width * sizeof(S));
    }
    return {s_.wide, words};
  }

  Rows ForProduct(const View<const S, 4>& array, int64_t batch, int64_t head, int64_t first, int64_t count) const {
    return pairs_ ? Pairs(array, batch, head, first, count) : Wide(array, batch, head, first, count);
  }

  // Elements, or pairs of them, that products of inputs sum over.
  int64_t Depth(int64_t width) const { return pairs_ ? (width + 1) / 2 : width; }

  // Products of a tile of queries, times `scale` if they are of pairs: packed queries hold it otherwise.
  void Multiply(int rows, int64_t depth, const T* a, const T* b, int64_t columns, const BlockKeys& keys,
                [[maybe_unused]] T scale, T* scores) const {
#if HEADWISE_BF16_KERNELS && HWY_TARGET == HWY_AVX3
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (pairs_) return MultiplyPairs(rows, depth, a, b, columns, keys.from, keys.to, scale, scores);
    }
#endif
    MultiplyScores(rows, depth, a, b, columns, keys.from, keys.to, scores);
  }

  // ------------------------------------------------------------------------------------------------------ d_query

  T* QuerySums(int64_t member, int64_t query) const {
    return partials_.d_query + (member * PaddedRows(queries_) + query) * s_.head_width;
  }

  void StartQueryGradients() const {
    if (!partials_.d_query) return;
    for (int64_t first = 0; first < queries_; first += kBackwardQueries) {
      const int64_t end = std::min(queries_, first + kBackwardQueries);
      if (!MeetsChunk(args_, first, end, chunk_.key_begin, chunk_.key_end)) continue;
      for (int64_t member = 0; member < group_; ++member) {
        std::fill_n(QuerySums(member, first), PaddedRows(end - first) * s_.head_width, T{0});
      }
    }
  }

  // ---------------------------------------------------------------------------------------------- d_key, d_value

  void StoreKeyGradients(int64_t begin, int64_t end) const {
    const T scale = Scale();
    const auto &d_key = gradients_.d_key, &d_value = gradients_.d_value;
    for (int64_t j = 0; j < end - begin; ++j) {
      if (d_key) {
        ScaleRow(s_.d_key + j * s_.head_width, s_.head_dim, scale, d_key.at(entry_, chunk_.kv_head, begin + j));
      }
      if (d_value) {
        ScaleRow(s_.d_value + j * s_.value_width, s_.value_dim, T{1}, d_value.at(entry_, chunk_.kv_head, begin + j));
      }
    }
  }

  // Keys [begin, end), of which some query may keep [low, high), and all queries. False if the call has been
  // interrupted.
  bool RunPass(int64_t begin, int64_t end, int64_t low, int64_t high) {
    if (low >= high && !stores_bias_) return true;
    pass_ = begin;
    for (int64_t key = low; key < high; key += kBackwardKeys<T>) {
      PackKeys(key, std::min(args_.key.shape[2], key + kBackwardKeys<T>));
    }
    for (int64_t member = 0; member < group_; ++member) {
      for (int64_t first = 0; first < queries_; first += kBackwardQueries) {
        member_ = member, first_ = first, rows_ = static_cast<int>(std::min(kBackwardQueries, queries_ - first));
        const bool meets = low < high && MeetsChunk(args_, first, first + rows_, low, high) && BlocksKeep(low, high);
        if (meets) StartQueries();
        for (int64_t key = begin; key < end && (meets || stores_bias_); key += kBackwardKeys<T>) {
          const int64_t key_end = std::min(end, key + kBackwardKeys<T>);
          if (!meets || key_end <= low || key >= high || !BlocksKeep(key, key_end)) {
            ClearBiases(key, key_end);
          } else if (!BlockPair(key, std::min(high, key_end), key_end)) {
            return false;
          }
        }
      }
    }
    return true;
  }

  // Whether the block mask, if there is one, keeps some of the keys [begin, end) for some of the block of queries.
  bool BlocksKeep(int64_t begin, int64_t end) const {
    const CallBlocks& blocks = args_.spec.blocks;
    return !blocks || AnyKept(blocks, chunk_.batch, Head(member_), 1, first_, first_ + rows_, begin, end);
  }

  void PackKeys(int64_t begin, int64_t end) const {
    const int64_t keys = end - begin, at = begin - pass_;
    const Rows wide = Wide(args_.key, chunk_.batch, chunk_.kv_head, begin, keys);
    s_.key_finite[at / kBackwardKeys<T>] =
        PackByRows(wide.data, keys, wide.stride, s_.head_dim, s_.key_rows + at * s_.head_width);
    const Rows key = ForProduct(args_.key, chunk_.batch, chunk_.kv_head, begin, keys);
    PackTransposed(key.data, keys, key.stride, score_depth_, s_.key_columns + at * score_depth_);
    const Rows value = ForProduct(args_.value, chunk_.batch, chunk_.kv_head, begin, keys);
    PackTransposed(value.data, keys, value.stride, value_depth_, s_.value_columns + at * value_depth_);
  }

  // ------------------------------------------------------------------------------------------- a block of queries

  void StartQueries() {
    for (int r = 0; r < rows_; ++r) {
      row_[r] = MakeRow(args_, Head(member_), first_ + r);
      const T lse = Lse(Head(member_), first_ + r);
      s_.minus_lse[r] = (lse == kMinusInf<T>) ? lse : -lse;  // a row that keeps nothing has P = 0
      s_.delta[r] = Delta(args_, gradients_, chunk_.batch, entry_, Head(member_), first_ + r);
    }
    std::fill(s_.minus_lse + rows_, s_.minus_lse + kBackwardQueries, kMinusInf<T>);
    std::fill(s_.delta + rows_, s_.delta + kBackwardQueries, T{0});
    query_finite_ = PackQueries(args_.query, chunk_.batch, s_.query_tiles, s_.query_rows);
    if (!pairs_) ScaleRow(s_.query_tiles, PackedTiles() * s_.head_dim, Scale(), s_.query_tiles);
    output_finite_ = PackQueries(gradients_.d_output, entry_, s_.output_tiles, s_.output_rows);
  }

  int64_t PackedTiles() const {
    const int64_t full = rows_ / kTileRows * kTileRows;
    return full + (full < rows_ ? BackwardHeight(rows_ - full) : 0);
  }

  // Packs the block's rows of an array as tiles and by rows. Returns whether they are finite.
  bool PackQueries(const View<const S, 4>& array, int64_t batch, T* tiles, T* rows) const {
    const int64_t width = array.shape[3];
    const Rows wide = Wide(array, batch, Head(member_), first_, rows_);
    const bool finite = PackByRows(wide.data, rows_, wide.stride, width, rows);
    const Rows from = ForProduct(array, batch, Head(member_), first_, rows_);
    PackTiles(from.data, rows_, from.stride, Depth(width), tiles);
    return finite;
  }

  T Lse(int64_t head, int64_t query) const { return *args_.lse.at(chunk_.batch, head, query); }

  // ------------------------------------------------------------------------------------------------- a block pair

  // Keys [begin, end) of the block [begin, block_end), and the block of queries. False if the call has been
  // interrupted.
  bool BlockPair(int64_t begin, int64_t end, int64_t block_end) {
    if (Interrupted(static_cast<double>(rows_ * (end - begin) * (6 * s_.head_dim + 4 * s_.value_dim)))) return false;
    ScoreModifiers modifiers = modifiers_;
    const BlockKeys keys = KeysOfBlock(begin, end, modifiers);
    bool cut = false;  // some tile has fewer keys than the block
    for (int t = 0; t * kTileRows < rows_; ++t) {
      tile_[t] = KeysOfTile(t, begin, keys, modifiers);
      cut |= tile_[t].from != keys.from || tile_[t].to != keys.to;
    }
    if (stores_bias_ && (cut || keys.from > 0 || keys.to < block_end - begin)) ClearBiases(begin, block_end);
    if (keys.empty()) return true;
    ComputeTiles(begin, modifiers);
    // Tiles of keys are read whole.
    const int64_t padded = keys.from + PaddedRows(keys.to - keys.from);
    if (cut || padded != keys.to) ClearOutside(keys.from, padded);
    if (gradients_.d_value)
      AddKeyGradients(keys, begin, s_.p, Packed(s_.output_rows, s_.value_dim, output_finite_), s_.d_value);
    if (modifiers & kSoftcap) MultiplyByDerivative();
    if (gradients_.d_key)
      AddKeyGradients(keys, begin, s_.ds, Packed(s_.query_rows, s_.head_dim, query_finite_), s_.d_key);
    if (partials_.d_query) AddQueryGradients(begin);
    return true;
  }

  // The keys of [begin, end) that some query of the block may keep, by windows and masks; removes kKeep and kBlocks if
  // all keep all of them, and adds kWindow if some window excludes one.
  BlockKeys KeysOfBlock(int64_t begin, int64_t end, ScoreModifiers& modifiers) const {
    const int64_t low = std::max(row_[0].low, begin), high = std::min(row_[rows_ - 1].high, end);
    BlockKeys keys;
    if (low < high) keys = {(low - begin) / kPanel<T> * kPanel<T>, high - begin};
    bool all = true;
    for (const auto& keep : args_.spec.keep) {
      if (keys.empty()) break;
      const KeptKeys kept = KeptByMask<T>(keep, chunk_.batch, row_, rows_, begin, keys.from, keys.to);
      keys = {kept.from, kept.to}, all &= kept.all;
    }
    if (all) modifiers &= ~kKeep;
    if (args_.spec.blocks && !keys.empty()) {
      const KeptKeys kept = KeptByBlocks<T>(args_.spec.blocks, chunk_.batch, row_, rows_, begin, keys.from, keys.to);
      keys = {kept.from, kept.to};
      if (kept.all) modifiers &= ~kBlocks;
    }
    if (row_[rows_ - 1].low > begin + keys.from || row_[0].high < begin + keys.to) modifiers |= kWindow;
    return keys;
  }

  BlockKeys KeysOfTile(int t, int64_t begin, const BlockKeys& keys, ScoreModifiers modifiers) const {
    const Row &first = row_[t * kTileRows], &last = row_[std::min((t + 1) * kTileRows, rows_) - 1];
    const int64_t from = std::max(keys.from, (first.low - begin) / kPanel<T> * kPanel<T>);
    const int64_t to = std::min(keys.to, last.high - begin);
    if ((modifiers & kBlocks) && from < to) {
      const int count = static_cast<int>(&last - &first) + 1;
      const KeptKeys kept = KeptByBlocks<T>(args_.spec.blocks, chunk_.batch, &first, count, begin, from, to);
      return kept.from < kept.to ? BlockKeys{kept.from, kept.to} : BlockKeys{keys.from, keys.from};
    }
    return from < to ? BlockKeys{from, to} : BlockKeys{keys.from, keys.from};
  }

  // visit(r, rows, keys) for the tiles of queries that keep some key.
  template <class Visit>
  void ForTiles(const Visit& visit) const {
    for (int t = 0; t * kTileRows < rows_; ++t) {
      const int r = t * kTileRows;
      if (!tile_[t].empty()) visit(r, std::min(kTileRows, rows_ - r), tile_[t]);
    }
  }

  int64_t BlockColumns(int64_t begin) const { return std::min(kBackwardKeys<T>, args_.key.shape[2] - begin); }

  // P and dS of the tiles that keep some key.
  void ComputeTiles(int64_t begin, ScoreModifiers modifiers) const {
    const int64_t at = begin - pass_, columns = BlockColumns(begin);
    ForTiles([&](int r, int rows, const BlockKeys& keys) {
      T* const p = s_.p + r * kBackwardStride<T>;
      T* const ds = s_.ds + r * kBackwardStride<T>;
      score_gradients_.Prefetch(row_ + r, rows, begin, keys);
      Multiply(rows, score_depth_, s_.query_tiles + r * score_depth_, s_.key_columns + at * score_depth_, columns, keys,
               Scale(), p);
      for (int i = r; modifiers && i < r + rows; ++i) Modify(i, begin, keys, modifiers);
      ComputeProbabilities(rows, keys.from, keys.to, s_.minus_lse + r, p);
      Multiply(rows, value_depth_, s_.output_tiles + r * value_depth_, s_.value_columns + at * value_depth_, columns,
               keys, T{1}, ds);
      if (!rows_apart_) return ComputeScoreGradients(rows, keys.from, keys.to, s_.delta + r, p, ds);
      for (int i = r; i < r + rows; ++i) ComputeRow(i, begin, keys);
    });
  }

  // Applies the score modifiers to row r; the softcap's derivative is kept.
  void Modify(int r, int64_t begin, const BlockKeys& keys, ScoreModifiers modifiers) const {
    const Tag<T> d;
    T* const scores = s_.p + r * kBackwardStride<T>;
    const ScoreModifiers others = modifiers & ~ScoreModifiers{kSoftcap};
    if (modifiers & kSoftcap) {
      ModifyRow(args_, chunk_.batch, row_[r], kSoftcap, begin, keys.from, keys.to, scores);
      const SoftcapDerivative<T> derivative(args_.spec.softcap);
      T* const to = s_.derivative + r * kBackwardStride<T>;
      for (int64_t j = keys.from; j < keys.to; j += kLanes<T>) {
        hn::StoreU(derivative(d, hn::LoadU(d, scores + j)), d, to + j);
      }
    }
    if (others) ModifyRow(args_, chunk_.batch, row_[r], others, begin, keys.from, keys.to, scores);
  }

  void ComputeRow(int r, int64_t begin, const BlockKeys& keys) const {
    T* const ds = s_.ds + r * kBackwardStride<T>;
    score_gradients_.Compute(row_[r], begin, keys, s_.delta[r], s_.p + r * kBackwardStride<T>, ds);
    score_gradients_.AddToBiases(row_[r], begin, keys, ds);
    if (partials_.d_alibi_slopes) s_.slopes[member_] += score_gradients_.SumOfDistances(row_[r], begin, keys, ds);
  }

  // Of biases that are stored, for the block of queries and keys [begin, end).
  void ClearBiases(int64_t begin, int64_t end) const {
    score_gradients_.ClearBiases(Head(member_), first_, rows_, begin, end);
  }

  void MultiplyByDerivative() const {
    const Tag<T> d;
    ForTiles([&](int r, int rows, const BlockKeys& keys) HWY_ATTR {
      for (int i = r; i < r + rows; ++i) {
        T* const ds = s_.ds + i * kBackwardStride<T>;
        const T* const derivative = s_.derivative + i * kBackwardStride<T>;
        ForEachVector(d, keys.to - keys.from, [&](auto lanes, int64_t k) HWY_ATTR {
          const int64_t j = keys.from + k;
          const auto gradient = lanes.Load(d, ds + j);
          // A dropped score may be NaN, and its derivative then as well.
          lanes.Store(WhereKept(d, gradient, lanes.Load(d, derivative + j)), d, ds + j);
        });
      }
    });
  }

  // P and dS of the block's columns [from, to) become 0 outside the keys of each tile.
  void ClearOutside(int64_t from, int64_t to) const {
    for (int r = 0; r < rows_; ++r) {
      const BlockKeys& keys = tile_[r / kTileRows];
      for (T* const row : {s_.p + r * kBackwardStride<T>, s_.ds + r * kBackwardStride<T>}) {
        std::fill(row + from, row + keys.from, T{0});
        std::fill(row + keys.to, row + to, T{0});
      }
    }
  }

  PackedRows<T> Packed(const T* rows, int64_t width, bool finite) const { return {rows, rows_, width, finite}; }

  // sums[key] += P^T b or dS^T b, over the queries whose tiles keep some of the tile's keys.
  void AddKeyGradients(const BlockKeys& keys, int64_t begin, const T* scores, const PackedRows<T>& b, T* sums) const {
    const int64_t width = PackedColumns<T>(b.columns);
    for (int64_t key = keys.from; key < keys.to; key += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, keys.to - key);
      int first = rows_, last = 0;
      ForTiles([&](int r, int rows, const BlockKeys& tile) {
        if (tile.from < key + count && tile.to > key) first = std::min(first, r), last = r + rows;
      });
      if (first >= last) continue;
      AddProduct<1, kBackwardStride<T>>(count, first, last - first, scores + first * kBackwardStride<T> + key, b,
                                        sums + (begin - pass_ + key) * width, width);
    }
  }

  void AddQueryGradients(int64_t begin) const {
    const int64_t at = begin - pass_;
    const PackedRows<T> b{s_.key_rows + at * s_.head_width, BlockColumns(begin), s_.head_dim,
                          s_.key_finite[at / kBackwardKeys<T>]};
    ForTiles([&](int r, int rows, const BlockKeys& keys) {
      AddProduct<kBackwardStride<T>, 1>(rows, keys.from, keys.to - keys.from,
                                        s_.ds + r * kBackwardStride<T> + keys.from, b, QuerySums(member_, first_ + r),
                                        s_.head_width);
    });
  }

  const AttentionArgs<S>& args_;
  const AttentionGradients<S>& gradients_;
  const BackwardChunk chunk_;
  const int64_t entry_;
  const BackwardPartials<S>& partials_;
  Arena arena_;
  const BackwardScratch<T> s_;
  const int64_t group_, queries_;
  const ScoreModifiers modifiers_;
  const bool pairs_;  // products of inputs take pairs of bf16
  const int64_t score_depth_, value_depth_;
  const ScoreGradients<S> score_gradients_;
  const bool stores_bias_;  // a gradient of a bias is written where nothing is kept, too
  const bool rows_apart_;   // the steps after the products need a sweep over rows
  int64_t pass_ = 0;        // first key of the pass
  // The block of queries.
  int64_t member_ = 0, first_ = 0;
  int rows_ = 0;
  bool query_finite_ = true, output_finite_ = true;
  Row row_[kBackwardQueries] = {};
  BlockKeys tile_[kBackwardTiles];
};

template <typename S>
std::size_t BackwardScratchBytes(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients) {
  Arena measure(nullptr);
  const BackwardScratch<Accumulator<S>> scratch(measure, args, gradients);
  return measure.used();
}

template <typename S>
void RunBackward(const AttentionArgs<S>& args, const AttentionGradients<S>& gradients, const BackwardChunk& chunk,
                 int64_t entry, const BackwardPartials<S>& partials, std::byte* scratch) {
  BackwardRun<S>(args, gradients, chunk, entry, partials, scratch).Run();
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
