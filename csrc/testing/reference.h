// Reference implementations in double precision: simple, and independent of the kernels. Tests, fuzzers and benchmarks
// compare with them. Results are dense, in the axis order of the operation's output.
#pragma once

#include <cstdint>
#include <vector>

#include "headwise/activation.h"
#include "headwise/attention.h"
#include "headwise/dtype.h"
#include "headwise/tensor.h"

namespace headwise::reference {

// Arguments as in the functions of the same names in headwise/*.h, for the same types T.

template <typename T>
std::vector<double> Softmax(View<const T, 3> x);
template <typename T>
std::vector<double> LogSoftmax(View<const T, 3> x);
template <typename T>
std::vector<double> LogSumExp(View<const T, 3> x);

template <typename T>
std::vector<double> LayerNorm(View<const T, 2> x, const T* gamma, const T* beta, double eps);
template <typename T>
std::vector<double> RmsNorm(View<const T, 2> x, const T* gamma, double eps);

struct NormGradients {
  std::vector<double> x, gamma, beta;
};

// Of LayerNorm if `centered`, else of RmsNorm.
template <typename T>
NormGradients NormBackward(bool centered, View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps);

template <typename T>
std::vector<double> Activate(Activation f, View<const T, 2> x, View<const T, 2> up);

struct ActivationGradients {
  std::vector<double> x, up;
};

template <typename T>
ActivationGradients ActivateBackward(Activation f, View<const T, 2> d_out, View<const T, 2> x, View<const T, 2> up);

template <typename T>
std::vector<double> ApplyRope(View<const T, 4> x, View<const Accumulator<T>, 4> cos, View<const Accumulator<T>, 4> sin,
                              bool interleaved);

template <typename T>
std::vector<double> AddAlibi(View<const T, 4> scores, const Accumulator<T>* slopes, std::int64_t offset);

template <typename T>
std::vector<double> Linear(View<const T, 2> x, View<const T, 2> weight, const Accumulator<T>* bias);

struct AttentionResult {
  std::vector<double> output;   // (batch, heads, query_len, value_dim)
  std::vector<double> weights;  // (batch, heads, query_len, key_len)
  std::vector<double> lse;      // (batch, heads, query_len)
};

// The outputs in `args` are neither read nor written.
template <typename T>
AttentionResult Attention(const AttentionArgs<T>& args);

// A gradient, and for each element the sum of the sizes of its terms, to which rounding errors are proportional.
struct Gradient {
  std::vector<double> values, sizes;
};

struct AttentionGradientsResult {
  Gradient d_query, d_key, d_value;
  std::vector<Gradient> d_bias;  // of the shapes in `gradients`; empty if not requested
  Gradient d_alibi_slopes, d_sinks, d_relative_bias;
};

// From args.output and args.lse, as AttentionBackward. The outputs in `gradients` are neither read nor written.
template <typename T>
AttentionGradientsResult AttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients);

}  // namespace headwise::reference
