// Linear attention: attention in linear time, by a state S of (features, value columns) for each batch entry and key
// head. A token t updates the state and reads it:
//
//   S = decay_t * S                                      rules with decays (Sun et al. 2023, Yang et al. 2024)
//   u = v_t, or beta_t (v_t - k_t S)                     rules with betas (Yang et al. 2024, arXiv:2406.06484)
//   S = S + k_t u,   output_t = scale q_t S
//
// as in ONNX's operator LinearAttention (opset 27), with `decay` = exp of its decays.
#pragma once

#include <cstdint>

#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise {

// Arrays of T are read and written as they are; everything else has the accumulator type. The last axes of query, key,
// value, state, output and new_state are contiguous. Query heads are a multiple of the key heads.
template <typename T>
struct LinearAttentionArgs {
  using A = Accumulator<T>;
  View<const T, 4> query;  // (batch, heads, query_len, features)
  View<const T, 4> key;    // (batch, kv_heads, key_len, features)
  View<const T, 4> value;  // (batch, kv_heads, key_len, value_dim)
  View<const A, 4>
      decay;              // (batch, kv_heads, key_len, features or 1), with strides of 0 where it is broadcast, or none
  View<const A, 3> beta;  // (batch, kv_heads, key_len), likewise
  View<const A, 4> state;   // (batch, kv_heads, features, value_dim + normalize), or none: 0
  View<T, 4> output;        // (batch, heads, query_len, value_dim)
  View<A, 4> new_state;     // of the shape of `state`
  bool elu = false;         // query and key are mapped by elu(x) + 1 (Katharopoulos et al. 2020)
  bool normalize = false;   // outputs are divided by those of values of 1, the last column of states; 0 where that is 0
  bool is_causal = true;    // false: each query sees all keys, and there are neither decays nor betas
  double scale = 1;         // of outputs that are not normalized
  std::int64_t chunk = 64;  // tokens that are computed together, at least 1; more than 60 are 60
};

// What is not finite in the row of a token reaches no output of an earlier token.
template <typename T>
void LinearAttention(const LinearAttentionArgs<T>& args);

}  // namespace headwise
