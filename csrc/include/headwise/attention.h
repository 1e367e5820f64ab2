// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), tiled with an online softmax (Milakov
// and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <variant>
#include <vector>

#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// For every batch entry b, head h (sharing key and value head h / (heads / kv_heads)) and query i:
//
//   s_j    = softcap * tanh(scale * query_i . key_j / softcap) + sum of biases_ij - alibi_slopes_h * |i + offset - j|
//   kept   = every keep_ij is nonzero, `blocks` keep ij, no bias_ij is -inf,
//            and i + offset - left <= j <= i + offset + right
//   p_j    = exp(s_j) / (sum over kept k of exp(s_k) + exp(sinks_h)), 0 where not kept
//   output = sum over kept j of p_j * value_j  (with dropout: dropout_keep_ij ? dropout_scale * p_j : 0)
//   lse    = log of the denominator
//
// One of the biases_ij is relative_bias_it, where t = clip(j - i - offset, -M, M) + M.
//
// T is float, double, Float16 or BFloat16. 16-bit types are computed in float; output and weights are rounded once.
//
// Limits:
// - A weight below 2^-86 (float64: 2^-622) of the max weight of its row may count as 0.
// - scale * query_i is rounded before the product; an element that the scale makes 0 gives NaN with an infinite key.
// - A kept NaN, or a score or sink of +inf, makes its whole row NaN, including the weights of keys that are not kept.
//   A score of -inf drops its key.
// - A query that keeps nothing gets output 0, weights 0 and lse -inf (or sinks_h).
// - NaN and infinity in a key or value that a query does not keep do not affect that query.
// - Memory is O(query_len + key_len) unless weights are requested.
//
// On the bf16 matmul backends (precision.h): for Float16 the low x low term is omitted (relative error <= 2^-16 per
// product) and weights are split into two terms before they meet the values; for BFloat16 weights are rounded to
// bfloat16. Numbers below 2^-126 count as 0, and numbers below 2^-110 lose low bits. The output differs by at most
// 2^-124 for that, unless a subnormal query meets a key beyond 2^100 or a subnormal key such a query.

// An additive bias (batch, heads, query_len, key_len): in the accumulator type or, for 16-bit T, in T.
template <typename T>
using Bias = std::conditional_t<kIs16Bit<T>, std::variant<View<const Accumulator<T>, 4>, View<const T, 4>>,
                                std::variant<View<const Accumulator<T>, 4>>>;

// A keep-mask in blocks of query_size queries and key_size keys, each of which is dropped, kept, or kept in part. The
// last blocks may be cut by the lengths.
struct BlockMask {
  static constexpr std::int32_t kNone = 0, kAll = 1, kFirstBits = 2;
  std::array<std::int64_t, 4> shape{};  // (batch or 1, heads or 1, query_blocks, key_blocks)
  std::int64_t query_size = 1, key_size = 1;
  std::vector<std::int32_t> index;      // of `shape`, contiguous: kNone, kAll, or kFirstBits + the number of a pattern
  const std::uint64_t* bits = nullptr;  // [patterns][query_size][Words()]: bit j % 64 of word j / 64 keeps key j
  std::int64_t patterns = 0;

  std::int64_t Words() const { return (key_size + 63) / 64; }  // in a row of a pattern
};

// The part of a block mask that belongs to a call.
struct CallBlocks {
  std::shared_ptr<const BlockMask> mask;  // optional
  std::int64_t batch = 0, query = 0;      // of the mask, of the call's batch entry 0 and query 0

  explicit operator bool() const { return mask != nullptr; }
};

// Everything that describes attention except its inputs and outputs. Masks and biases have the shape (batch, heads,
// query_len, key_len), with stride 0 on axes that are broadcast; the last stride is 0 or 1.
template <typename T>
struct AttentionSpec {
  double scale = 1.0;
  double softcap = 0.0;     // 0: none; else 1e-30 to 1e30
  std::int64_t left = -1;   // window to the left; -1: open
  std::int64_t right = -1;  // window to the right; -1: open; 0: causal
  std::int64_t offset = 0;  // position of query 0 among the keys
  Precision precision = Precision::kHighest;
  std::vector<View<const std::uint8_t, 4>> keep;  // nonzero keeps
  std::vector<Bias<T>> bias;                      // added in this order; -inf drops
  const Accumulator<T>* alibi_slopes = nullptr;   // (heads,); optional
  const Accumulator<T>* sinks = nullptr;          // (heads,); optional
  View<const std::uint8_t, 4> dropout_keep;       // nonzero keeps the weight; optional
  double dropout_scale = 1.0;                     // factor of the weights that dropout keeps
  // Right-padded batches: entry b has only its first key_lengths[b] keys, and its query 0 is at position offset +
  // offsets[b]. Both empty, or one number per batch entry. Weights of the other keys are 0, also in rows of NaN.
  std::vector<std::int64_t> key_lengths, offsets;
  CallBlocks blocks;  // a keep-mask besides `keep`, whose dropped blocks are skipped; optional
  // (batch, heads, query_len, 2 M + 1), with stride 0 on broadcast axes and a contiguous last axis; optional.
  View<const Accumulator<T>, 4> relative_bias;
};

// Keys and values of a type S of their own beside float queries, as caches store them: Float16, BFloat16 or
// std::int8_t. Kernels convert them in registers or while packing. A number stored in int8 has nine bits and the factor
// of its row: scale * (integer + bit / 2).
template <typename S>
struct StoredKeys {
  View<const S, 4> key;    // (batch, kv_heads, key_len, head_dim)
  View<const S, 4> value;  // (batch, kv_heads, key_len, value_dim)
  // For int8 only, last axes contiguous: the factors of each row of key and of value, (batch, kv_heads, key_len), and
  // the bits, (batch, kv_heads, key_len, (dim + 7) / 8). Column i has bit i % 8 of byte i / 8.
  View<const float, 3> key_scale, value_scale;
  View<const std::uint8_t, 4> key_bits, value_bits;
};
using AnyStoredKeys = std::variant<std::monostate, StoredKeys<Float16>, StoredKeys<BFloat16>, StoredKeys<std::int8_t>>;

template <typename A>
struct WeightStatistics;  // attention_statistics.h

// The last axis of every array is contiguous.
template <typename T>
struct AttentionArgs {
  View<const T, 4> query;       // (batch, heads, query_len, head_dim)
  View<const T, 4> key;         // (batch, kv_heads, key_len, head_dim)
  View<const T, 4> value;       // (batch, kv_heads, key_len, value_dim)
  View<T, 4> output;            // (batch, heads, query_len, value_dim)
  View<T, 4> weights;           // (batch, heads, query_len, key_len); optional
  View<Accumulator<T>, 3> lse;  // (batch, heads, query_len); optional
  AttentionSpec<T> spec;
  // For T = float only, in place of the data of key and value, of which the shapes alone are then read.
  AnyStoredKeys stored;
  // Set by AttentionStatistics alone (attention_statistics.h), for its kernels.
  const WeightStatistics<Accumulator<T>>* statistics = nullptr;
};

// Throws std::invalid_argument, with a message that begins with the argument's name, unless the shapes agree, the
// strides and softcap are as stated above, and left, right and offset are at most 2^61 in size. Reads no array.
template <typename T>
void CheckAttention(const AttentionArgs<T>& args);

// The functions below are defined for T = float, double, Float16 and BFloat16. They check their arguments before any
// other work, and throw std::bad_alloc if there is no memory for scratch space.

// With key_lengths, every batch entry has the bits of a call with its own keys alone, and takes the time of one.
template <typename T>
void Attention(const AttentionArgs<T>& args);

// Many calls in one parallel region, for sequences of different lengths. Nothing is padded. Each call's results have
// the bits of a call of Attention. No call's outputs may overlap another call's arrays, and no call has key_lengths.
template <typename T>
void AttentionVarlen(const std::vector<AttentionArgs<T>>& calls);

// The gradients of a sum, of which d_x = d sum / d x, with respect to attention's inputs: given those with respect to
// its results. The last axis of every array is contiguous. An output that is not given is not computed; every element
// of the others is written.
template <typename T>
struct AttentionGradients {
  View<const T, 4> d_output;            // (batch, heads, query_len, value_dim)
  View<const Accumulator<T>, 3> d_lse;  // (batch, heads, query_len); optional
  View<const T, 4> d_weights;           // (batch, heads, query_len, key_len); optional
  View<T, 4> d_query, d_key, d_value;   // of the shapes of query, key and value
  // One for each bias of the spec, or none at all. An axis of size 1 is summed over.
  std::vector<View<Accumulator<T>, 4>> d_bias;
  Accumulator<T>* d_alibi_slopes = nullptr;  // (heads,)
  Accumulator<T>* d_sinks = nullptr;         // (heads,)
  // Of the shape of relative_bias; an axis of size 1 before the last is summed over.
  View<Accumulator<T>, 4> d_relative_bias;
};

// The backward pass (Dao et al. 2022, arXiv:2205.14135, algorithm 4), from `output` and `lse` as Attention has computed
// them, which are only read; args.weights is ignored. Scores are recomputed, so memory is O(query_len + key_len) per
// head besides the gradients:
//
//   p_ij    = exp(s_ij - lse_i), 0 where not kept
//   delta_i = d_output_i . output_i - d_lse_i
//   dp_ij   = d_output_i . value_j  (with dropout: dropout_keep_ij ? dropout_scale * dp_ij : 0)
//   ds_ij   = p_ij * (dp_ij + d_weights_ij - delta_i)
//   dx_ij   = scale * ds_ij, with softcap times 1 - tanh^2
//
//   d_query_i = sum_j dx_ij key_j
//   d_key_j   = sum_i dx_ij query_i
//   d_value_j = sum_i (p_ij with dropout) d_output_i
//   d_bias_ij = ds_ij
//   d_relative_bias_it = sum of ds_ij over the j with clip(j - i - offset, -M, M) + M = t
//   d_alibi_slopes_h = -sum_ij ds_ij |i + offset - j|
//   d_sinks_h = -sum_i exp(sinks_h - lse_i) delta_i
//
// delta has no term for d_weights: the caller subtracts sum_j p_ij d_weights_ij from d_lse_i.
//
// - Gradients are computed in the accumulator type and rounded once. They have the same bits for any number of threads.
// - Scores are products in the accumulator type. Where Attention has computed lse from scores rounded otherwise (on a
//   bf16 matmul backend), p_ij has a relative error of about 2^-22 |s_ij|.
// - For BFloat16 on processors with AVX512_BF16, inputs below 2^-126 count as 0.
// - A pair (i, j) that is not kept contributes nothing, whatever the rows of i and j hold, NaN included.
template <typename T>
void AttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients);

// What AttentionBackward checks first.
template <typename T>
void CheckAttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients);

// Sequences packed one behind another. The last axis of every array is contiguous.
template <typename T>
struct PackedAttentionArgs {
  View<const T, 3> query;       // (heads, queries of all sequences, head_dim)
  View<const T, 3> key;         // (kv_heads, keys of all sequences, head_dim)
  View<const T, 3> value;       // (kv_heads, keys of all sequences, value_dim)
  View<T, 3> output;            // (heads, queries of all sequences, value_dim)
  View<Accumulator<T>, 2> lse;  // (heads, queries of all sequences); optional
  // Without keep, blocks, bias, dropout_keep and key_lengths; PackedSequences::offsets replaces its offset.
  AttentionSpec<T> spec;
  AnyStoredKeys stored;  // as in AttentionArgs, with a batch axis of 1
};

// Sequence s has queries [query_starts[s], query_starts[s] + query_lengths[s]) and keys likewise; its query 0 is at
// position offsets[s] among its keys. Ranges of keys may overlap (shared prefixes), ranges of queries must not. All
// vectors have one entry per sequence.
struct PackedSequences {
  std::vector<std::int64_t> query_starts, query_lengths, key_starts, key_lengths, offsets;
};

// Every sequence's results have the bits of a call of Attention. Rows of output and lse that belong to no sequence are
// not written. Throws std::invalid_argument also if lengths differ, ranges leave the arrays or queries overlap.
template <typename T>
void AttentionVarlen(const PackedAttentionArgs<T>& args, const PackedSequences& sequences);

}  // namespace headwise
