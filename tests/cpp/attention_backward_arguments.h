// Arguments of the backward pass of attention and their memory, for tests and fuzzers.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention_arguments.h"

namespace headwise::testing {

// `Arguments`: those of the forward pass, such as AttentionCase<T>.
template <typename T, class Arguments>
class BackwardArguments : public Arguments {
  using Number = Accumulator<T>;

 public:
  template <class... More>
  explicit BackwardArguments(const AttentionShape& shape, More&&... more)
      : Arguments(shape, std::forward<More>(more)...),
        d_output(Make<T, 4>(this->output.view().shape)),
        d_weights(Make<T, 4>(this->weights.view().shape)),
        d_query(Make<T, 4>(this->query.view().shape)),
        d_key(Make<T, 4>(this->key.view().shape)),
        d_value(Make<T, 4>(this->value.view().shape)),
        d_lse(Make<Number, 3>({shape.batch, this->heads, shape.query_len})),
        d_slopes(Make<Number, 1>({this->heads})),
        d_sinks(Make<Number, 1>({this->heads})) {
    this->WantLse();
    FillNormal(d_output, this->random);
    gradients.d_output = d_output.read();
    gradients.d_query = d_query.view();
    gradients.d_key = d_key.view();
    gradients.d_value = d_value.view();
  }

  void AddWeightGradients() { gradients.d_weights = FillNormal(d_weights, this->random).read(); }
  void AddLseGradients() { gradients.d_lse = FillNormal(d_lse, this->random).read(); }

  // Gradients of all biases, slopes and sinks that the arguments have.
  void WantParameters() {
    const auto add = [&](const auto& view) {
      std::array<std::int64_t, 4> shape{};
      for (std::size_t axis = 0; axis < 4; ++axis) shape[axis] = view.stride[axis] == 0 ? 1 : view.shape[axis];
      d_bias_.push_back(Make<Number, 4>(shape));
      gradients.d_bias.push_back(d_bias_.back().view());
    };
    d_bias_.clear(), gradients.d_bias.clear();
    for (const Bias<T>& bias : this->args.spec.bias) std::visit(add, bias);
    if (this->args.spec.alibi_slopes) gradients.d_alibi_slopes = d_slopes.data();
    if (this->args.spec.sinks) gradients.d_sinks = d_sinks.data();
    if (const auto& relative = this->args.spec.relative_bias) {
      std::array<std::int64_t, 4> shape = relative.shape;
      for (std::size_t axis = 0; axis < 3; ++axis) shape[axis] = relative.stride[axis] == 0 ? 1 : shape[axis];
      d_relative_.emplace(Make<Number, 4>(shape));
      gradients.d_relative_bias = d_relative_->view();
    }
  }

  // Attention, for output and lse.
  void RunForward() const { this->Run(); }

  void RunBackward() const {
    ReadOnly inputs(this->query, this->key, this->value, this->output, this->lse, d_output, d_weights, d_lse);
    AttentionBackward(this->args, gradients);
  }

  std::string GradientDifference(const reference::AttentionGradientsResult& expected) const {
    const auto compare = [&](const char* name, const auto& tensor, const reference::Gradient& gradient) -> std::string {
      double size = 0;
      for (const double s : gradient.sizes) size = std::max(size, std::isfinite(s) ? s : 0);
      std::string wrong = Difference(tensor.Values(), gradient.values, 2 * this->Tolerance() * size);
      if (wrong.empty() && !tensor.PaddingIntact()) wrong = "padding written";
      return wrong.empty() ? "" : std::string(name) + ": " + wrong;
    };
    std::string all;
    ForEachGradient(expected, [&](const char* name, const auto& tensor, const reference::Gradient& gradient) {
      if (all.empty()) all = compare(name, tensor, gradient);
    });
    return all;
  }

  // visit(name, tensor, expected gradient) for those that are wanted.
  template <class Visit>
  void ForEachGradient(const reference::AttentionGradientsResult& expected, const Visit& visit) const {
    if (gradients.d_query) visit("d_query", d_query, expected.d_query);
    if (gradients.d_key) visit("d_key", d_key, expected.d_key);
    if (gradients.d_value) visit("d_value", d_value, expected.d_value);
    for (std::size_t i = 0; i < d_bias_.size(); ++i) visit("d_bias", d_bias_[i], expected.d_bias[i]);
    if (gradients.d_alibi_slopes) visit("d_alibi_slopes", d_slopes, expected.d_alibi_slopes);
    if (gradients.d_sinks) visit("d_sinks", d_sinks, expected.d_sinks);
    if (d_relative_) visit("d_relative_bias", *d_relative_, expected.d_relative_bias);
  }

  // The bits of all gradients.
  std::vector<char> GradientBits() const {
    std::vector<char> bits;
    const auto append = [&](const auto& tensor) {
      const auto values = tensor.Values();
      const char* const begin = reinterpret_cast<const char*>(values.data());
      bits.insert(bits.end(), begin, begin + values.size() * sizeof(values[0]));
    };
    append(d_query), append(d_key), append(d_value), append(d_slopes), append(d_sinks);
    for (const auto& d_bias : d_bias_) append(d_bias);
    if (d_relative_) append(*d_relative_);
    return bits;
  }

  const Tensor<T, 4> d_output, d_weights, d_query, d_key, d_value;
  const Tensor<Number, 3> d_lse;
  const Tensor<Number, 1> d_slopes, d_sinks;
  AttentionGradients<T> gradients;

 private:
  template <typename U, int kRank>
  Tensor<U, kRank> Make(std::array<std::int64_t, kRank> shape) const {
    if constexpr (kRank == 4) {
      return Tensor<U, 4>(shape, this->shape.guard, this->shape.order, this->shape.pad);
    } else {
      return Tensor<U, kRank>(shape, this->shape.guard);
    }
  }

  std::vector<Tensor<Number, 4>> d_bias_;
  std::optional<Tensor<Number, 4>> d_relative_;
};

}  // namespace headwise::testing
