// Many backward passes of attention in one parallel region, for sequences of different lengths.
#pragma once

#include <vector>

#include "headwise/attention.h"

namespace headwise {

// The arguments of one call of AttentionBackward (attention.h).
template <typename T>
struct AttentionBackwardCall {
  AttentionArgs<T> args;
  AttentionGradients<T> gradients;
};

// Every call's gradients have the bits of a call of AttentionBackward. No call's gradients may overlap another call's
// arrays. Defined for T = float, double, Float16 and BFloat16; throws as AttentionBackward, before any work.
template <typename T>
void AttentionBackwardVarlen(const std::vector<AttentionBackwardCall<T>>& calls);

// Packed sequences, as PackedAttentionArgs: gradients with respect to their arrays, except relative_bias, whose
// gradient takes one AttentionBackwardCall per sequence.
template <typename T>
struct PackedAttentionGradients {
  View<const T, 3> d_output;            // (heads, queries of all sequences, value_dim)
  View<const Accumulator<T>, 2> d_lse;  // (heads, queries of all sequences); optional
  View<T, 3> d_query, d_key, d_value;   // of the shapes of query, key and value; each optional
  // (sequences, heads), last axis contiguous: those of each sequence; each optional.
  View<Accumulator<T>, 2> d_alibi_slopes, d_sinks;
};

// `output` and `lse` of the arguments are those of AttentionVarlen, and are only read. Ranges of keys must not overlap
// here. Rows of gradients that belong to no sequence are not written.
template <typename T>
void AttentionBackwardVarlen(const PackedAttentionArgs<T>& args, const PackedAttentionGradients<T>& gradients,
                             const PackedSequences& sequences);

}  // namespace headwise
