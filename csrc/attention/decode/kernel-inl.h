// Decode: few queries against many keys, as in a generation step. Bound by the memory bandwidth of keys and values.
//
// What differs from kernel-inl.h: nothing is packed, because each key and value would be moved for a handful of
// products; the keys are split into chunks (split-KV), one task each, so that one sequence keeps all cores busy; every
// target uses FMA. All rows that share a key and value head (the queries of the grouped heads) meet a block of keys
// together, so that keys and values are read from memory once. Each chunk leaves a partial result (partial-inl.h):
// max m, sum and undivided output. combine-inl.h combines them.
//
// Keys and values may have a type K of their own (StoredKeys), which is converted in registers. Rows of int8 have
// factors: that of a key multiplies its scores, that of a value its weights.
//
// Cost: 4 * head_dim operations per score, and a horizontal sum.

#if defined(HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#undef HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#else
#define HEADWISE_ATTENTION_DECODE_KERNEL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <variant>

#include "attention/decode/dots-inl.h"
#include "attention/decode/partial-inl.h"
#include "attention/kernel.h"
#include "attention/modifiers/score_modifiers-inl.h"
#include "attention/softmax-inl.h"
#include "attention/stored_rows-inl.h"
#include "base/interruption.h"
#include "base/scratch.h"
#include "hwy/highway.h"
#include "matmul/fma-inl.h"
#include "matmul/pack-inl.h"
#include "simd/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace headwise {
namespace HWY_NAMESPACE {

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

  T* Scores(int64_t r) const { return scores + r * kKeyBlock<T>; }

  int64_t query_width;
  Row* row;
  T* query;    // [rows][query_width], times the scale, zero beyond head_dim
  T* scores;   // [rows][kKeyBlock], then weights
  T* shift;    // [rows]: max of the block's scores, then (UpdateMaxima) their subtrahend
  T* rescale;  // [rows] factors for the outputs so far
};

template <typename S>
std::size_t DecodeScratchBytes(const AttentionArgs<S>& args) {
  Arena measure(nullptr);
  const Partial<Accumulator<S>> partial(measure, args, 0);
  DecodeScratch<Accumulator<S>>(measure, args, partial.rows);
  return measure.used();
}

// One chunk of keys at work.
template <typename S>
struct DecodeRun {
  using T = Accumulator<S>;

  DecodeRun(const AttentionArgs<S>& arguments, const DecodeChunk& keys, std::byte* partial_memory, std::byte* memory)
      : args(arguments),
        chunk(keys),
        modifiers(ModifiersOf(args.spec) | kWindow),  // rows share a block of keys, but have windows of their own
        partial_arena(partial_memory),
        partial(partial_arena, args, chunk.key_end - chunk.key_begin),
        arena(memory),
        scratch(arena, args, partial.rows) {}

  T* Scores(int64_t r) const { return scratch.Scores(r); }

  const AttentionArgs<S>& args;
  const DecodeChunk chunk;
  const ScoreModifiers modifiers;
  Arena partial_arena;
  const Partial<T> partial;
  Arena arena;
  const DecodeScratch<T> scratch;
};

// The keys and values of one head, of element type K.
template <typename K>
struct HeadKeys {
  StoredRows<K> key, value;
  int64_t keys, head_dim, value_dim;
  const float *key_scale = nullptr, *value_scale = nullptr;  // [keys], of int8
};

template <typename K>
HeadKeys<K> KeysOfHead(const View<const K, 4>& key, const View<const K, 4>& value, const DecodeChunk& chunk) {
  return {{key, chunk.batch, chunk.kv_head},
          {value, chunk.batch, chunk.kv_head},
          key.shape[2],
          key.shape[3],
          value.shape[3]};
}

// function(row, Int<rows>) for groups of rows.
template <class Function>
HWY_INLINE void ForRowGroups(int64_t rows, const Function& function) {
  int64_t r = 0;
  for (; r + kDecodeRows <= rows; r += kDecodeRows) function(r, Int<kDecodeRows>());
  for (; r + 2 <= rows; r += 2) function(r, Int<2>());
  if (r < rows) function(r, Int<1>());
}

template <typename S>
void StartDecodeRows(const DecodeRun<S>& run) {
  using T = Accumulator<S>;
  const auto& partial = run.partial;
  std::fill_n(partial.max, partial.rows, kMinusInf<T>);
  std::fill_n(partial.sum, partial.rows, T{0});
  std::fill_n(partial.output, partial.rows * partial.value_width, T{0});
  const int64_t queries = run.args.query.shape[2], first_head = run.chunk.kv_head * (partial.rows / queries);
  for (int64_t r = 0; r < partial.rows; ++r) {
    const Row& row = run.scratch.row[r] = MakeRow(run.args, first_head + r / queries, r % queries);
    T* query = run.scratch.query + r * run.scratch.query_width;
    std::fill_n(query, run.scratch.query_width, T{0});
    ScaleRow(run.args.query.at(run.chunk.batch, row.head, row.query), run.args.query.shape[3],
             static_cast<T>(run.args.spec.scale), query);
  }
}

// Rows are prefetched this many rows before they are used, keys while keys are scored and values while values are
// added: hardware prefetchers stop at pages, of which a stream of rows enters a new one every few rows. A row of fewer
// bits takes less time, and its line as long to arrive. Measured on one core of Zen 5, AVX-512, with 4 rows of head_dim
// 128 and 32,768 keys, for 8 keys and 16 values ahead, 32 and 64, 64 and 128 (ms): float16 6.1, 5.0, 4.8;
// int8 5.6, 4.8, 4.2. Without, on Zen 4, float32 took 30 ms and not 21. Prefetching a block's values while its keys are
// scored gained nothing in float32.
template <typename K>
constexpr int64_t kKeysAhead = sizeof(K) >= 4 ? 8 : 64 / sizeof(K);
template <typename K>
constexpr int64_t kValuesAhead = 2 * kKeysAhead<K>;

// Scores of rows [r, r + kRows) with `keys` keys from key `begin` on.
template <int kRows, typename T, typename K>
void DecodeScores(const DecodeScratch<T>& scratch, const HeadKeys<K>& head, int64_t r, int64_t begin, int64_t keys) {
  const int64_t width = scratch.query_width;
  const T* query = scratch.query + r * width;
  const StoredRows<K> key = head.key;
  int64_t j = 0;
  for (; j + kDecodeKeys <= keys; j += kDecodeKeys) {
    if (r == 0 && begin + j + kKeysAhead<K> + kDecodeKeys <= head.keys) {
      key.Prefetch(begin + j + kKeysAhead<K>, kDecodeKeys, 0, head.head_dim);
    }
    Dots<kRows, kDecodeKeys, kKeyBlock<T>>(query, width, key, begin + j, head.head_dim, scratch.Scores(r) + j);
  }
  for (; j < keys; ++j) {
    Dots<kRows, 1, kKeyBlock<T>>(query, width, key, begin + j, head.head_dim, scratch.Scores(r) + j);
  }
}

// One row's weighted values of a vector of columns, for values with NaN or Inf: keys of weight 0 are skipped, because
// 0 * NaN is NaN.
template <class Lanes, typename T, typename K>
HWY_NOINLINE hn::Vec<Tag<T>> SumSkippingZeros(Lanes lanes, const T* weights, const StoredRows<K>& value, int64_t keys,
                                              int64_t column) {
  const Tag<T> d;
  auto sum = hn::Zero(d);
  for (int64_t j = 0; j < keys; ++j) {
    if (weights[j] == T{0}) continue;
    sum = hn::MulAdd(hn::Set(d, weights[j]), value.Load(lanes, d, j, column), sum);
  }
  return sum;
}

// Adds the weighted values of kVectors vectors of columns to the outputs of rows [first, first + kRows). Prefetches
// `ahead` elements of the rows up to row `prefetch_end`.
template <int kRows, int kVectors, class Lanes, typename T, typename K>
HWY_INLINE void AddDecodeColumns(const DecodeScratch<T>& scratch, const Partial<T>& partial, Lanes lanes, int64_t first,
                                 const StoredRows<K>& value, int64_t keys, int64_t column, int64_t ahead,
                                 int64_t prefetch_end) {
  const Tag<T> d;
  const T* weights = scratch.Scores(first);
  hn::Vec<Tag<T>> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kVectors; ++i) sum[i / kVectors][i % kVectors] = hn::Zero(d);
  for (int64_t j = 0; j < keys; ++j) {
    if (j + kValuesAhead<K> < prefetch_end) value.Prefetch(j + kValuesAhead<K>, 1, column, ahead);
    hn::Vec<Tag<T>> values[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) values[v] = value.Load(lanes, d, j, column + v * kLanes<T>);
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
      const auto block = finite ? sum[r][v] : SumSkippingZeros(lanes, scratch.Scores(first + r), value, keys, from);
      T* output = partial.output + (first + r) * partial.value_width + from;
      hn::Store(hn::MulAdd(hn::Load(d, output), hn::Set(d, scratch.rescale[first + r]), block), d, output);
    }
  }
}

// output = output * rescale + weights times values, for rows [r, r + kRows) and `keys` keys from key `begin` on.
template <int kRows, typename T, typename K>
void AddDecodeValues(const DecodeScratch<T>& scratch, const Partial<T>& partial, const HeadKeys<K>& head, int64_t r,
                     int64_t begin, int64_t keys) {
  constexpr int kMaxVectors = kTileRows * 4 / 3 / kRows;  // half of the registers hold sums
  const int64_t value_dim = head.value_dim;
  StoredRows<K> value = head.value;
  value.Skip(begin);
  // Other groups of rows find the values in the caches. The first columns prefetch the next ones, too, whose sweep is
  // shorter than the way from memory.
  const int64_t prefetch_end = r == 0 ? head.keys - begin : 0;
  int64_t column = 0;
  const auto add = [&](auto vectors) HWY_ATTR {
    constexpr int64_t kWidth = vectors.value * kLanes<T>;
    for (; column + kWidth <= value_dim; column += kWidth) {
      AddDecodeColumns<kRows, vectors.value>(scratch, partial, AllLanes(), r, value, keys, column,
                                             std::min(2 * kWidth, value_dim - column), prefetch_end);
    }
  };
  if constexpr (kRows == 1) add(Int<8>());
  add(Int<std::min(4, kMaxVectors)>());
  add(Int<1>());
  if (column < value_dim) {
    AddDecodeColumns<kRows, 1>(scratch, partial, FirstLanes{value_dim - column}, r, value, keys, column,
                               value_dim - column, prefetch_end);
  }
}

// numbers[0, n) *= factors[0, n).
template <typename T>
void MultiplyRow(const float* factors, int64_t n, T* numbers) {
  const Tag<T> d;
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR {
    lanes.Store(hn::Mul(lanes.Load(d, numbers + j), lanes.Load(d, factors + j)), d, numbers + j);
  });
}

// numbers[0, n) *= factors[0, n), but 0 stays 0 beside a factor of NaN or infinity.
template <typename T>
void MultiplyNonzero(const float* factors, int64_t n, T* numbers) {
  const Tag<T> d;
  ForEachVector(d, n, [&](auto lanes, int64_t j) HWY_ATTR {
    const auto number = lanes.Load(d, numbers + j);
    const auto product = hn::Mul(number, lanes.Load(d, factors + j));
    lanes.Store(hn::IfThenZeroElse(hn::Eq(number, hn::Zero(d)), product), d, numbers + j);
  });
}

// All rows meet the keys [begin, end).
template <typename S, typename K>
void DecodeKeyBlock(const DecodeRun<S>& run, const HeadKeys<K>& head, int64_t begin, int64_t end) {
  constexpr bool kScaled = std::is_same_v<K, std::int8_t>;
  const auto& args = run.args;
  const auto& chunk = run.chunk;
  const auto& partial = run.partial;
  const auto& scratch = run.scratch;
  const int64_t keys = end - begin;
  ForRowGroups(partial.rows,
               [&](int64_t r, auto rows) HWY_ATTR { DecodeScores<rows.value>(scratch, head, r, begin, keys); });
  for (int64_t r = 0; r < partial.rows; ++r) {
    if constexpr (kScaled) MultiplyRow(head.key_scale + begin, keys, run.Scores(r));
    ModifyRow(args, chunk.batch, scratch.row[r], run.modifiers, begin, 0, keys, run.Scores(r));
    scratch.shift[r] = MaxScore(run.Scores(r), 0, keys);
    if (args.weights) std::copy_n(run.Scores(r), keys, partial.scores + r * partial.keys + begin - chunk.key_begin);
  }
  UpdateMaxima(partial.rows, partial.max, partial.sum, scratch.shift, scratch.rescale);
  const auto& dropout = args.spec.dropout_keep;
  for (int64_t r = 0; r < partial.rows; ++r) {
    partial.sum[r] += Exponentials(run.Scores(r), 0, keys, scratch.shift[r]);
    if (dropout) {
      ApplyDropout(dropout.at(chunk.batch, scratch.row[r].head, scratch.row[r].query, begin), dropout.stride[3],
                   static_cast<Accumulator<S>>(args.spec.dropout_scale), 0, keys, run.Scores(r));
    }
    if constexpr (kScaled) MultiplyNonzero(head.value_scale + begin, keys, run.Scores(r));
  }
  ForRowGroups(partial.rows, [&](int64_t r, auto rows)
                                 HWY_ATTR { AddDecodeValues<rows.value>(scratch, partial, head, r, begin, keys); });
}

template <typename S, typename K>
void DecodeKeys(const DecodeRun<S>& run, const HeadKeys<K>& head) {
  const auto& args = run.args;
  KeyRange keys = KeysOf(args, run.chunk.batch, 0, args.query.shape[2]);
  keys.begin = std::max(keys.begin, run.chunk.key_begin), keys.end = std::min(keys.end, run.chunk.key_end);
  const auto skips_keys = [&](int64_t begin, int64_t end) {
    if (!args.spec.blocks || args.weights) return false;
    const int64_t group = args.query.shape[1] / args.key.shape[1];
    return !AnyKept(args.spec.blocks, run.chunk.batch, run.chunk.kv_head * group, group, 0, args.query.shape[2], begin,
                    end);
  };
  const double key_work =
      2.0 * static_cast<double>(run.partial.rows) * static_cast<double>(args.query.shape[3] + args.value.shape[3]);
  ForKeyBlocks(kKeyBlock<Accumulator<S>>, keys, [&](int64_t begin, int64_t end) HWY_ATTR {
    if (skips_keys(begin, end)) return;
    if (!Interrupted(key_work * static_cast<double>(end - begin))) DecodeKeyBlock(run, head, begin, end);
  });
}

template <typename S>
void DecodeChunkKernel(const AttentionArgs<S>& args, const DecodeChunk& chunk, std::byte* partial, std::byte* scratch) {
  const DecodeRun<S> run(args, chunk, partial, scratch);
  StartDecodeRows(run);
  if constexpr (std::is_same_v<S, float>) {
    if (const auto* float16 = std::get_if<StoredKeys<Float16>>(&args.stored)) {
      return DecodeKeys(run, KeysOfHead(float16->key, float16->value, chunk));
    }
    if (const auto* bfloat16 = std::get_if<StoredKeys<BFloat16>>(&args.stored)) {
      return DecodeKeys(run, KeysOfHead(bfloat16->key, bfloat16->value, chunk));
    }
    if (const auto* int8 = std::get_if<StoredKeys<std::int8_t>>(&args.stored)) {
      const int64_t b = chunk.batch, h = chunk.kv_head;
      return DecodeKeys(run, HeadKeys<std::int8_t>{{int8->key, int8->key_bits, b, h},
                                                   {int8->value, int8->value_bits, b, h},
                                                   int8->key.shape[2],
                                                   int8->key.shape[3],
                                                   int8->value.shape[3],
                                                   int8->key_scale.at(b, h),
                                                   int8->value_scale.at(b, h)});
    }
  }
  DecodeKeys(run, KeysOfHead(args.key, args.value, chunk));
}

}  // namespace HWY_NAMESPACE
}  // namespace headwise
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
