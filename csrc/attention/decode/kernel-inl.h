// Few queries against many keys: a step of generation.
//
// Nothing is packed: each key and value would be moved for a handful of products. The keys are split into chunks, one
// task each, so that one sequence keeps all cores busy; a chunk goes through its keys in blocks as attention-inl.h
// does, with all rows that share them (the queries of the grouped heads) at once, so that keys and values come from
// memory once. A chunk leaves its maximum m, sum and undivided output; they are merged in order of the keys:
//   output = sum_c exp(m_c - m) output_c / sum_c exp(m_c - m) sum_c.
//
// Work: 4 * head_dim operations a score, and a horizontal sum. Bound by the memory that keys and values come from.

#if defined(HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#undef HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#endif

#include <algorithm>

#include "attention/kernel.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

// Rows that a key is multiplied with while it is in registers, and keys at a time.
constexpr int kDecodeRows = 4;
constexpr int kDecodeKeys = kTileRows / 3;

// What a chunk of keys leaves for merging.
template <typename T>
struct Partial {
  template <typename S>
  Partial(Arena& arena, const AttentionArgs<S>& args, int64_t chunk_keys)
      : rows(args.query.shape[1] / args.key.shape[1] * args.query.shape[2]),
        value_width(PackedColumns<T>(args.value.shape[3])),
        keys(args.weights ? chunk_keys : 0),
        max(arena.Allocate<T>(rows)),
        sum(arena.Allocate<T>(rows)),
        output(arena.Allocate<T>(rows, value_width)),
        scores(arena.Allocate<T>(rows, keys)) {}

  int64_t rows, value_width, keys;
  T* max;     // [rows]
  T* sum;     // [rows] of exp(score - max)
  T* output;  // [rows][value_width], not divided by the sum
  T* scores;  // [rows][keys], of which weights will be made, where they are wanted
};

template <typename T>
struct DecodeScratch {
  template <typename S>
  DecodeScratch(Arena& arena, const AttentionArgs<S>& args, int64_t rows)
      : query_width(PackedColumns<T>(args.query.shape[3])),
        row(arena.Allocate<Row>(rows)),
        query(arena.Allocate<T>(rows, query_width)),
        scores(arena.Allocate<T>(rows, kKeyBlock<T>)),
        shift(arena.Allocate<T>(rows)),
        rescale(arena.Allocate<T>(rows)) {}

  int64_t query_width;
  Row* row;
  T* query;    // [rows][query_width], times the scale, zero beyond head_dim
  T* scores;   // [rows][kKeyBlock], then weights
  T* shift;    // [rows]: largest of the block's scores, then what to subtract from them
  T* rescale;  // [rows] factors for the outputs so far
};

template <typename S>
std::size_t PartialBytes(const AttentionArgs<S>& args, int64_t chunk_keys) {
  Arena measure(nullptr);
  const Partial<Accumulator<S>> partial(measure, args, chunk_keys);
  return measure.used();
}

template <typename S>
std::size_t DecodeScratchBytes(const AttentionArgs<S>& args) {
  Arena measure(nullptr);
  const Partial<Accumulator<S>> partial(measure, args, 0);
  DecodeScratch<Accumulator<S>>(measure, args, partial.rows);
  return measure.used();
}

// scores[r][j] = query_r . key_j for kRows rows and kKeys keys. Rows of queries end in zeros.
template <int kRows, int kKeys, typename T, typename S>
HWY_INLINE void Dots(const T* query, int64_t query_stride, const S* key, int64_t key_stride, int64_t depth, T* scores) {
  const Tag<T> d;
  hn::Vec<Tag<T>> sum[kRows][kKeys];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kKeys; ++i) sum[i / kKeys][i % kKeys] = hn::Zero(d);
  ForEachVector(d, depth, [&](auto lanes, int64_t k) HWY_ATTR {
    hn::Vec<Tag<T>> keys[kKeys];
#pragma GCC unroll 4
    for (int j = 0; j < kKeys; ++j) keys[j] = lanes.Load(d, key + j * key_stride + k);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto q = hn::Load(d, query + r * query_stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) sum[r][j] = hn::MulAdd(q, keys[j], sum[r][j]);
    }
  });
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kKeys; ++i) {
    scores[i / kKeys * kKeyBlock<T> + i % kKeys] = hn::GetLane(hn::SumOfLanes(d, sum[i / kKeys][i % kKeys]));
  }
}

template <typename S>
class DecodeRun {
  using T = Accumulator<S>;

 public:
  DecodeRun(const AttentionArgs<S>& args, const DecodeChunk& chunk, std::byte* partial, std::byte* memory)
      : args_(args),
        chunk_(chunk),
        head_dim_(args.query.shape[3]),
        value_dim_(args.value.shape[3]),
        changes_(ChangesOf(args)),
        partial_arena_(partial),
        partial_(partial_arena_, args, chunk.key_end - chunk.key_begin),
        arena_(memory),
        scratch_(arena_, args, partial_.rows) {}

  void Run() const {
    Begin();
    KeyRange keys = KeysOf(args_, chunk_.batch, 0, args_.query.shape[2]);
    keys.begin = std::max(keys.begin, chunk_.key_begin), keys.end = std::min(keys.end, chunk_.key_end);
    ForKeyBlocks(kKeyBlock<T>, keys, [&](int64_t begin, int64_t end) HWY_ATTR { Online(begin, end); });
  }

 private:
  void Begin() const {
    std::fill_n(partial_.max, partial_.rows, kMinusInf<T>);
    std::fill_n(partial_.sum, partial_.rows, T{0});
    std::fill_n(partial_.output, partial_.rows * partial_.value_width, T{0});
    const int64_t queries = args_.query.shape[2], first_head = chunk_.kv_head * (partial_.rows / queries);
    for (int64_t r = 0; r < partial_.rows; ++r) {
      const Row& row = scratch_.row[r] = MakeRow(args_, first_head + r / queries, r % queries);
      T* query = scratch_.query + r * scratch_.query_width;
      std::fill_n(query, scratch_.query_width, T{0});
      ScaleRow(args_.query.at(chunk_.batch, row.head, row.query), head_dim_, static_cast<T>(args_.spec.scale), query);
    }
  }

  // function(row, Int<rows>) for groups of rows.
  template <class Function>
  HWY_INLINE void ForRows(const Function& function) const {
    int64_t r = 0;
    for (; r + kDecodeRows <= partial_.rows; r += kDecodeRows) function(r, Int<kDecodeRows>());
    for (; r + 2 <= partial_.rows; r += 2) function(r, Int<2>());
    if (r < partial_.rows) function(r, Int<1>());
  }

  void Online(int64_t begin, int64_t end) const {
    const int64_t keys = end - begin;
    const S* key = args_.key.at(chunk_.batch, chunk_.kv_head, begin);
    ForRows([&](int64_t r, auto rows) HWY_ATTR { Score<rows.value>(r, key, keys); });
    for (int64_t r = 0; r < partial_.rows; ++r) {
      const ScoreRow<T> row(ScoresOf(r), begin, 0, keys);
      Changes changes = changes_;
      changes.limit = true;
      row.Change(args_, chunk_.batch, scratch_.row[r], changes);
      scratch_.shift[r] = row.Max();
      if (args_.weights) std::copy_n(ScoresOf(r), keys, partial_.scores + r * partial_.keys + begin - chunk_.key_begin);
    }
    MoveMaxima(partial_.rows, partial_.max, partial_.sum, scratch_.shift, scratch_.rescale);
    for (int64_t r = 0; r < partial_.rows; ++r) {
      partial_.sum[r] += Exponentials(ScoresOf(r), 0, keys, scratch_.shift[r]);
      Drop(r, begin, keys);
    }
    const S* value = args_.value.at(chunk_.batch, chunk_.kv_head, begin);
    ForRows([&](int64_t r, auto rows) HWY_ATTR { AddValues<rows.value>(r, value, keys); });
  }

  T* ScoresOf(int64_t r) const { return scratch_.scores + r * kKeyBlock<T>; }

  template <int kRows>
  void Score(int64_t r, const S* key, int64_t keys) const {
    const T* query = scratch_.query + r * scratch_.query_width;
    const int64_t stride = args_.key.stride[2];
    int64_t j = 0;
    for (; j + kDecodeKeys <= keys; j += kDecodeKeys) {
      Dots<kRows, kDecodeKeys>(query, scratch_.query_width, key + j * stride, stride, head_dim_, ScoresOf(r) + j);
    }
    for (; j < keys; ++j) {
      Dots<kRows, 1>(query, scratch_.query_width, key + j * stride, stride, head_dim_, ScoresOf(r) + j);
    }
  }

  void Drop(int64_t r, int64_t begin, int64_t keys) const {
    if (!args_.spec.dropout_keep) return;
    const Row& row = scratch_.row[r];
    DropWeights(args_.spec.dropout_keep.at(chunk_.batch, row.head, row.query, begin), args_.spec.dropout_keep.stride[3],
                static_cast<T>(args_.spec.dropout_scale), 0, keys, ScoresOf(r));
  }

  template <int kRows>
  void AddValues(int64_t r, const S* value, int64_t keys) const {
    constexpr int kMost = 16 / kRows;
    int64_t column = 0;
    const auto add = [&](auto vectors) HWY_ATTR {
      for (; column + vectors.value * kLanes<T> <= value_dim_; column += vectors.value * kLanes<T>) {
        AddColumns<kRows, vectors.value>(AllLanes(), r, value, keys, column);
      }
    };
    if constexpr (kMost > 8) add(Int<8>());
    add(Int < kMost < 8 ? kMost : 4 > ());
    add(Int<1>());
    if (column < value_dim_) AddColumns<kRows, 1>(FirstLanes{value_dim_ - column}, r, value, keys, column);
  }

  // The weighted values of kVectors vectors of columns, to the outputs of rows [r, r + kRows).
  template <int kRows, int kVectors, class Lanes>
  HWY_INLINE void AddColumns(Lanes lanes, int64_t first, const S* value, int64_t keys, int64_t column) const {
    const Tag<T> d;
    const int64_t stride = args_.value.stride[2];
    const T* weights = ScoresOf(first);
    hn::Vec<Tag<T>> sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kRows * kVectors; ++i) sum[i / kVectors][i % kVectors] = hn::Zero(d);
    for (int64_t j = 0; j < keys; ++j) {
      hn::Vec<Tag<T>> values[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) values[v] = lanes.Load(d, value + j * stride + column + v * kLanes<T>);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto weight = hn::Set(d, weights[r * kKeyBlock<T> + j]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(weight, values[v], sum[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const int64_t from = column + v * kLanes<T>;
        const bool finite = hn::AllTrue(d, hn::Eq(hn::Mul(sum[r][v], hn::Zero(d)), hn::Zero(d)));
        const auto block = finite ? sum[r][v] : WithoutDropped(lanes, ScoresOf(first + r), value + from, keys);
        T* output = partial_.output + (first + r) * partial_.value_width + from;
        hn::Store(hn::MulAdd(hn::Load(d, output), hn::Set(d, scratch_.rescale[first + r]), block), d, output);
      }
    }
  }

  // The same for one row and vector where values are NaN or Inf: a key of weight 0 is passed over, for 0 * NaN is not
  // 0.
  template <class Lanes>
  HWY_NOINLINE hn::Vec<Tag<T>> WithoutDropped(Lanes lanes, const T* weights, const S* value, int64_t keys) const {
    const Tag<T> d;
    auto sum = hn::Zero(d);
    for (int64_t j = 0; j < keys; ++j) {
      if (weights[j] == T{0}) continue;
      sum = hn::MulAdd(hn::Set(d, weights[j]), lanes.Load(d, value + j * args_.value.stride[2]), sum);
    }
    return sum;
  }

  const AttentionArgs<S>& args_;
  const DecodeChunk chunk_;
  const int64_t head_dim_, value_dim_;
  const Changes changes_;
  Arena partial_arena_;
  const Partial<T> partial_;
  Arena arena_;
  const DecodeScratch<T> scratch_;
};

template <typename S>
void DecodeRunChunk(const AttentionArgs<S>& args, const DecodeChunk& chunk, std::byte* partial, std::byte* scratch) {
  DecodeRun<S>(args, chunk, partial, scratch).Run();
}

// What the chunks of one key and value head left of its queries.
template <typename S>
void MergeChunks(const AttentionArgs<S>& args, int64_t batch, int64_t kv_head, int64_t chunk_keys,
                 std::byte* partials) {
  using T = Accumulator<S>;
  const Tag<T> d;
  const int64_t queries = args.query.shape[2], value_dim = args.value.shape[3], key_len = args.key.shape[2];
  const int64_t group = args.query.shape[1] / args.key.shape[1];
  const int64_t chunks = std::max<int64_t>(1, (key_len + chunk_keys - 1) / chunk_keys);
  const std::size_t bytes = PartialBytes(args, chunk_keys);
  const auto chunk = [&](int64_t c) {
    Arena arena(partials + bytes * static_cast<std::size_t>(c));
    return Partial<T>(arena, args, std::min(chunk_keys, key_len - c * chunk_keys));
  };
  const Partial<T> total = chunk(0);
  const KeyRange keys = KeysOf(args, batch, 0, queries);
  for (int64_t r = 0; r < total.rows; ++r) {
    const int64_t head = kv_head * group + r / queries, query = r % queries;
    const T sink = args.spec.sinks ? args.spec.sinks[head] : kMinusInf<T>;
    T max = sink;
    for (int64_t c = 0; c < chunks; ++c) max = std::max(max, chunk(c).max[r]);
    const T shift = max == kMinusInf<T> ? T{0} : max;
    const auto factor_of = [&](T partial_max) HWY_ATTR {
      return partial_max == shift ? T{1} : hn::GetLane(AttentionExp(d, hn::Set(d, partial_max - shift)));
    };
    T sum = sink == shift ? SinkTerm(sink) : factor_of(sink);
    T* output = total.output + r * total.value_width;
    for (int64_t c = 0; c < chunks; ++c) {
      const Partial<T> part = chunk(c);
      const T factor = factor_of(part.max[r]);
      sum += part.sum[r] * factor;
      const T* from = part.output + r * total.value_width;
      for (int64_t i = 0; i < total.value_width; i += kLanes<T>) {
        const auto before = c == 0 ? hn::Zero(d) : hn::Load(d, output + i);
        hn::Store(hn::MulAdd(hn::Load(d, from + i), hn::Set(d, factor), before), d, output + i);
      }
    }
    const T normaliser = Normaliser(sum);
    ScaleRow(output, value_dim, normaliser, args.output.at(batch, head, query));
    if (args.lse) *args.lse.at(batch, head, query) = LogSumExp(max, sum);
    if (args.weights) {
      S* weights = args.weights.at(batch, head, query);
      const T nothing = T{0} * normaliser;  // NaN where the row is
      FillRow(weights, keys.begin, nothing);
      for (int64_t c = keys.begin / chunk_keys; c * chunk_keys < keys.end; ++c) {
        const Partial<T> part = chunk(c);
        const int64_t first = c * chunk_keys;
        const int64_t from = std::max(keys.begin - first, int64_t{0}), to = std::min(keys.end - first, part.keys);
        T* scores = part.scores + r * part.keys;
        Exponentials(scores, from, to, shift);
        ScaleRow(scores + from, to - from, normaliser, weights + first + from);
      }
      FillRow(weights + keys.end, key_len - keys.end, nothing);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
