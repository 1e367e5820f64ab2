// Statistics of attention's weights (attention.h) without an array of all weights.
#pragma once

#include <cstdint>

#include "headwise/attention.h"

namespace headwise {

// The results, in the accumulator type A. Each is optional, and the last axis of every array is contiguous. With the
// weights p_ij of query i and key j:
template <typename A>
struct WeightStatistics {
  View<A, 3> key_mass;             // (batch, heads, key_len): sum over i of p_ij
  View<A, 3> entropy;              // (batch, heads, query_len): -sum over j of p_ij log(p_ij), where 0 log(0) = 0
  View<A, 3> max_weight;           // (batch, heads, query_len): max over j of p_ij
  View<A, 4> top_weights;          // (batch, heads, query_len, k): the k largest p_ij in decreasing order
  View<std::int64_t, 4> top_keys;  // likewise: their j; of equal weights the first ones
  View<A, 4> block_mass;           // (batch, heads, query_blocks, key_blocks): sums of p_ij over blocks
  std::int64_t query_size = 1, key_size = 1;  // of the blocks; the last ones may be cut by the lengths
};

// Fills the statistics that are given, and args.lse. args.weights is empty; args.value and args.output are ignored.
// Defined for T = float and double; keys of 16-bit types are `stored` ones. Checks its arguments before any other work,
// and throws std::bad_alloc if there is no memory for scratch space.
//
// - Results have the same bits for any number of threads.
// - A key that a query does not keep affects no result of that query. A query that keeps nothing has entropy, weights
//   and mass 0. A query whose weights are NaN makes the mass of all keys of its head NaN; it has the first keys.
// - Memory: the weights of 48 rows (at least 1 MB) per thread; the sums of about 64 parts, at least one per head.
template <typename T>
void AttentionStatistics(const AttentionArgs<T>& args, const WeightStatistics<Accumulator<T>>& statistics);

}  // namespace headwise
