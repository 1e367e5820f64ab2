// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), tiled with an online softmax (Milakov
// and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
#pragma once

#include <vector>

#include "headwise/dtype.h"
#include "headwise/precision.h"
#include "headwise/tensor.h"

namespace headwise {

// For every batch entry b, head h (sharing key and value head h / (heads / kv_heads)) and query i:
//
//   s_j    = softcap * tanh(scale * query_i . key_j / softcap) + sum of biases_ij - alibi_slopes_h * |i + offset - j|
//   kept   = every keep_ij, and left and right: i + offset - left <= j <= i + offset + right
//   p_j    = exp(s_j) / (sum over kept k of exp(s_k) + exp(sinks_h)), 0 where not kept
//   output = sum over kept j of p_j * value_j  (with dropout: dropout_keep_ij ? dropout_scale * p_j : 0)
//   lse    = log of the denominator
//
// Weights below 2^-86 (float64: 2^-622) of the greatest in their row may count as 0. scale * query_i is rounded first:
// a number that this makes 0 is NaN beside an infinite one of a key.
// A kept NaN, or a score or sink of +inf, makes its whole row NaN, weights of keys not kept included. A query that
// keeps nothing gets output 0, weights 0 and lse -inf (or sinks_h). Whatever stands in a key or value that is not kept,
// NaN included, reaches nothing. Unless weights are asked for, nothing of size query_len * key_len is built.
//
// T is float, double, Float16 or BFloat16. Halves are computed in float; output and weights are rounded once.
//
// Where bfloat16 is multiplied (see precision.h): of Float16 the products of the lesser of two parts are left out,
// up to 2^-16 of a product, and weights meet values in two parts, those of BFloat16 as BFloat16. Numbers below 2^-126
// count as 0, and below 2^-110 lose their last bits: the output differs by at most 2^-124 for that unless a subnormal
// query meets a key beyond 2^100, or the other way round. A score of -inf drops its key, on every target.
// Everything that describes attention but its inputs and outputs. Axes of size 1 of masks and biases have stride 0.
template <typename T>
struct AttentionSpec {
  double scale = 1.0;
  double softcap = 0.0;     // 0: none
  std::int64_t left = -1;   // -1: open
  std::int64_t right = -1;  // -1: open; 0: causal
  std::int64_t offset = 0;  // position of query 0 among the keys
  Precision precision = Precision::kHighest;
  std::vector<View<const std::uint8_t, 4>> keep;    // nonzero keeps; stride 0 where broadcast, last stride 0 or 1
  std::vector<View<const Accumulator<T>, 4>> bias;  // likewise; -inf drops
  std::vector<View<const T, 4>> half_bias;          // more of them, where T is a half
  const Accumulator<T>* alibi_slopes = nullptr;     // (heads,); optional
  const Accumulator<T>* sinks = nullptr;            // (heads,); optional
  View<const std::uint8_t, 4> dropout_keep;         // weights that dropout keeps are not zero; optional
  double dropout_scale = 1.0;                       // factor of the weights that dropout keeps
};

template <typename T>
struct AttentionArgs {
  View<const T, 4> query;       // (batch, heads, query_len, head_dim), last axis contiguous
  View<const T, 4> key;         // (batch, kv_heads, key_len, head_dim), last axis contiguous
  View<const T, 4> value;       // (batch, kv_heads, key_len, value_dim), last axis contiguous
  View<T, 4> output;            // (batch, heads, query_len, value_dim), last axis contiguous
  View<T, 4> weights;           // (batch, heads, query_len, key_len), last axis contiguous; optional
  View<Accumulator<T>, 3> lse;  // (batch, heads, query_len); optional
  AttentionSpec<T> spec;
};

void Attention(const AttentionArgs<float>& args);
void Attention(const AttentionArgs<double>& args);
void Attention(const AttentionArgs<Float16>& args);
void Attention(const AttentionArgs<BFloat16>& args);

// Many calls as one, of sequences of different lengths: each is a call with batch entries of its own, views of packed
// arrays for instance. All share one parallel region, nothing is padded, and each comes out as it does alone, to the
// bit. No call's outputs may overlap another's arrays.
void AttentionVarlen(const std::vector<AttentionArgs<float>>& calls);
void AttentionVarlen(const std::vector<AttentionArgs<double>>& calls);
void AttentionVarlen(const std::vector<AttentionArgs<Float16>>& calls);
void AttentionVarlen(const std::vector<AttentionArgs<BFloat16>>& calls);

}  // namespace headwise
