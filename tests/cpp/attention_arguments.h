// Arguments of attention and their memory, for tests and fuzzers.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "headwise/attention.h"
#include "headwise/runtime.h"
#include "tensor.h"
#include "testing/reference.h"

namespace headwise::testing {

using Axes = std::array<std::int64_t, 4>;
constexpr Axes kHeadsFirst{0, 1, 2, 3};  // (batch, heads, seq, dim) in memory
constexpr Axes kSeqFirst{0, 2, 1, 3};    // (batch, seq, heads, dim)

struct AttentionShape {
  std::int64_t batch = 1, kv_heads = 1, group = 1, query_len = 1, key_len = 1, head_dim = 8, value_dim = 8;
  Guard guard = Guard::kAfter;
  Axes order = kHeadsFirst;
  std::int64_t pad = 0;
};

template <typename T>
class AttentionArguments {
 public:
  using Number = Accumulator<T>;

  AttentionArguments(const AttentionShape& shape, std::uint64_t seed)
      : random(seed),
        shape(shape),
        heads(shape.kv_heads * shape.group),
        query(Make<T>(heads, shape.query_len, shape.head_dim)),
        key(Make<T>(shape.kv_heads, shape.key_len, shape.head_dim)),
        value(Make<T>(shape.kv_heads, shape.key_len, shape.value_dim)),
        output(Make<T>(heads, shape.query_len, shape.value_dim)),
        weights(Make<T>(heads, shape.query_len, shape.key_len)),
        lse({shape.batch, heads, shape.query_len}, shape.guard, {0, 1, 2}, shape.pad) {
    args.query = query.read();
    args.key = key.read();
    args.value = value.read();
    args.output = output.view();
    args.spec.scale = 1 / std::sqrt(static_cast<double>(shape.head_dim));
  }

  void WantWeights() { args.weights = weights.view(); }
  void WantLse() { args.lse = lse.view(); }

  // Masks and biases: full[axis] is the full size along that axis, else one broadcast entry.
  void AddKeep(double probability, std::array<bool, 4> full = {true, true, true, true}) {
    args.spec.keep.push_back(Broadcast(bytes_.emplace_back(MakeKeep(probability, full))));
  }
  // kept(head, query, key)
  template <class Function>
  void AddKeepWhere(const Function& kept) {
    const Tensor<std::uint8_t, 4>& keep = bytes_.emplace_back(MakeKeep(0, {true, true, true, true}));
    for (std::int64_t n = 0; n < shape.batch; ++n) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t i = 0; i < shape.query_len; ++i) {
          for (std::int64_t j = 0; j < shape.key_len; ++j) *keep.view().at(n, h, i, j) = kept(h, i, j) ? 1 : 0;
        }
      }
    }
    args.spec.keep.push_back(Broadcast(keep));
  }
  void AddDropout(double probability, std::array<bool, 4> full = {true, true, true, true}) {
    args.spec.dropout_keep = Broadcast(bytes_.emplace_back(MakeKeep(1 - probability, full)));
    args.spec.dropout_scale = 1 / (1 - probability);
  }
  void AddBias(double deviation, double dropped, std::array<bool, 4> full = {true, true, true, true}) {
    args.spec.bias.push_back(Broadcast(AddBiasTo(biases_, deviation, dropped, full)));
  }
  // In the stored type T instead of the accumulator type.
  void AddStoredBias(double deviation, double dropped, std::array<bool, 4> full = {true, true, true, true}) {
    if (!kIs16Bit<T>) return AddBias(deviation, dropped, full);
    args.spec.bias.push_back(Broadcast(AddBiasTo(stored_biases_, deviation, dropped, full)));
  }
  // Of `reach` distances to each side; full[axis]: batch, heads and queries.
  void AddRelativeBias(double deviation, double dropped, std::int64_t reach,
                       std::array<bool, 3> full = {false, true, false}) {
    const Axes sizes = ShapeOf({full[0], full[1], full[2], true});
    relative_.emplace(Axes{sizes[0], sizes[1], sizes[2], 2 * reach + 1}, shape.guard, shape.order, shape.pad);
    FillNormal(*relative_, random, deviation);
    relative_->ForEach([&](Number& element) {
      if (Chance(random, dropped)) element = static_cast<Number>(-kInf);
    });
    View<const Number, 4>& view = args.spec.relative_bias = relative_->read();
    const Axes rows{shape.batch, heads, shape.query_len, 2 * reach + 1};
    for (std::size_t axis = 0; axis < 3; ++axis) {
      if (view.shape[axis] == 1) view.stride[axis] = 0;
    }
    view.shape = rows;
  }
  void AddSlopes(double deviation) {
    slopes_.emplace(std::array<std::int64_t, 1>{heads}, shape.guard);
    args.spec.alibi_slopes = FillNormal(*slopes_, random, deviation).data();
  }
  void AddSinks() {
    sinks_.emplace(std::array<std::int64_t, 1>{heads}, shape.guard);
    args.spec.sinks = FillNormal(*sinks_, random, 2).data();
  }

  // Right-padded batch entries of 0 to key_len keys.
  void AddKeyLengths(bool aligned_right) {
    for (std::int64_t n = 0; n < shape.batch; ++n) {
      args.spec.key_lengths.push_back(Integer(random, 0, shape.key_len));
      args.spec.offsets.push_back(aligned_right ? args.spec.key_lengths.back() - shape.key_len : 0);
    }
  }

  bool Kept(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t j) const {
    std::int64_t position = i + args.spec.offset;
    if (!args.spec.key_lengths.empty()) {
      if (j >= args.spec.key_lengths[static_cast<std::size_t>(n)]) return false;
      position += args.spec.offsets[static_cast<std::size_t>(n)];
    }
    if (args.spec.left >= 0 && j < position - args.spec.left) return false;
    if (args.spec.right >= 0 && j > position + args.spec.right) return false;
    for (const auto& keep : args.spec.keep) {
      if (*keep.at(n, h, i, j) == 0) return false;
    }
    const auto drops = [&](const Bias<T>& bias) {
      return std::visit([&](const auto& view) { return reference::ToDouble(*view.at(n, h, i, j)); }, bias) == -kInf;
    };
    if (const auto& relative = args.spec.relative_bias) {
      const std::int64_t reach = relative.shape[3] / 2;
      if (*relative.at(n, h, i, std::clamp(j - position, -reach, reach) + reach) == -kInf) return false;
    }
    return std::none_of(args.spec.bias.begin(), args.spec.bias.end(), drops);
  }

  // Writes NaN and Inf to every key and value that no query keeps. Returns their number.
  int Poison() {
    int poisoned = 0;
    const double odd[] = {kNaN, kInf, -kInf, -kNaN};
    for (std::int64_t n = 0; n < shape.batch; ++n) {
      for (std::int64_t kv = 0; kv < shape.kv_heads; ++kv) {
        for (std::int64_t j = 0; j < shape.key_len; ++j) {
          if (KeptByAny(n, kv, j)) continue;
          const auto number = [&](std::int64_t d) { return reference::Nearest<T>(odd[d % 4]); };
          for (std::int64_t d = 0; d < shape.head_dim; ++d) *key.view().at(n, kv, j, d) = number(d);
          for (std::int64_t d = 0; d < shape.value_dim; ++d) *value.view().at(n, kv, j, d) = number(d);
          ++poisoned;
        }
      }
    }
    return poisoned;
  }

  void Run() const {
    ReadOnly inputs(query, key, value);
    for (const Tensor<std::uint8_t, 4>& bytes : bytes_) inputs.Add(bytes);
    for (const Tensor<Number, 4>& bias : biases_) inputs.Add(bias);
    for (const Tensor<T, 4>& bias : stored_biases_) inputs.Add(bias);
    if (relative_) inputs.Add(*relative_);
    if (slopes_) inputs.Add(*slopes_);
    if (sinks_) inputs.Add(*sinks_);
    Attention(args);
  }

  // Whether a bf16 backend computes this: decode never uses one.
  bool OnBf16() const { return HasBf16Products<T>(args.spec.precision) && shape.group * shape.query_len > 8; }

  // The bf16 backends round weights to one term for BFloat16 and to two for Float16.
  double WeightRounding() const {
    if (!OnBf16()) return 0;
    return std::is_same_v<T, BFloat16> ? 0x1p-7 : std::is_same_v<T, Float16> ? 0x1p-14 : 0;
  }
  // For Float16 the bf16 backends omit the low x low term.
  double ProductEpsilon() const { return OnBf16() && std::is_same_v<T, Float16> ? 0x1p-16 : kEpsilon<T>; }

  // Relative error of a weight: scores have rounding errors relative to the largest addend, and exp turns absolute
  // errors into relative ones.
  double Tolerance() const {
    const double product =
        std::abs(args.spec.scale) * MaxAbs(query) * MaxAbs(key) * std::sqrt(static_cast<double>(shape.head_dim));
    double others = MaxOfBiases();
    const auto distance = static_cast<double>(shape.query_len + shape.key_len + std::abs(args.spec.offset));
    if (slopes_) others += MaxAbs(*slopes_) * distance;
    return (10 + others) * kEpsilon<T> + product * ProductEpsilon();
  }

  double MaxOfBiases() const {
    double max = 0;
    for (const Tensor<Number, 4>& bias : biases_) max += MaxAbs(bias);
    for (const Tensor<T, 4>& bias : stored_biases_) max += MaxAbs(bias);
    if (relative_) max += MaxAbs(*relative_);
    return max;
  }

  // A description of the difference from `expected`, or of writes to padding; empty if there is none. `tolerance`: of a
  // weight.
  std::string Difference(const reference::AttentionResult& expected, double tolerance) const {
    using testing::Difference;
    std::string wrong = Difference(output.Values(), expected.output, (tolerance + WeightRounding()) * MaxAbs(value));
    if (!wrong.empty()) return "output: " + wrong;
    if (!output.PaddingIntact() || !weights.PaddingIntact() || !lse.PaddingIntact()) return "padding written";
    if (args.lse) wrong = Difference(lse.Values(), expected.lse, tolerance);
    if (!wrong.empty()) return "lse: " + wrong;
    if (!args.weights) return "";
    wrong = Difference(weights.Values(), expected.weights, tolerance);
    return wrong.empty() ? "" : "weights: " + wrong;
  }

  Random random;
  const AttentionShape shape;
  const std::int64_t heads;
  const Tensor<T, 4> query, key, value, output, weights;
  const Tensor<Number, 3> lse;
  AttentionArgs<T> args;

 protected:
  std::vector<Tensor<std::uint8_t, 4>> bytes_;
  std::vector<Tensor<Number, 4>> biases_;
  std::vector<Tensor<T, 4>> stored_biases_;
  std::optional<Tensor<Number, 4>> relative_;
  std::optional<Tensor<Number, 1>> slopes_, sinks_;

 private:
  template <typename U>
  const Tensor<U, 4>& AddBiasTo(std::vector<Tensor<U, 4>>& biases, double deviation, double dropped,
                                std::array<bool, 4> full) {
    const Tensor<U, 4>& bias = biases.emplace_back(ShapeOf(full), shape.guard, shape.order, shape.pad);
    FillNormal(bias, random, deviation);
    bias.ForEach([&](U& element) {
      if (Chance(random, dropped)) element = reference::Nearest<U>(-kInf);
    });
    return bias;
  }
  template <typename U>
  Tensor<U, 4> Make(std::int64_t n_heads, std::int64_t length, std::int64_t width) const {
    return Tensor<U, 4>({shape.batch, n_heads, length, width}, shape.guard, shape.order, shape.pad);
  }

  Axes ShapeOf(std::array<bool, 4> full) const {
    const Axes sizes{shape.batch, heads, shape.query_len, shape.key_len};
    Axes result{};
    for (std::size_t axis = 0; axis < 4; ++axis)
      result[axis] = full[axis] ? sizes[axis] : std::min<std::int64_t>(1, sizes[axis]);
    return result;
  }

  Tensor<std::uint8_t, 4> MakeKeep(double probability, std::array<bool, 4> full) {
    Tensor<std::uint8_t, 4> keep(ShapeOf(full), shape.guard, shape.order, shape.pad);
    // Any nonzero value keeps.
    keep.ForEach([&](std::uint8_t& element) {
      element = Chance(random, probability) ? static_cast<std::uint8_t>(Integer(random, 1, 255)) : std::uint8_t{0};
    });
    return keep;
  }

  template <typename U>
  View<const U, 4> Broadcast(const Tensor<U, 4>& tensor) const {
    View<const U, 4> view = tensor.read();
    const Axes sizes{shape.batch, heads, shape.query_len, shape.key_len};
    for (std::size_t axis = 0; axis < 4; ++axis) {
      if (view.shape[axis] == 1) view.stride[axis] = axis == 3 && sizes[axis] == 1 ? 1 : 0;
      view.shape[axis] = sizes[axis];
    }
    return view;
  }

  bool KeptByAny(std::int64_t n, std::int64_t kv, std::int64_t j) const {
    for (std::int64_t h = kv * shape.group; h < (kv + 1) * shape.group; ++h) {
      for (std::int64_t i = 0; i < shape.query_len; ++i) {
        if (Kept(n, h, i, j)) return true;
      }
    }
    return false;
  }
};

}  // namespace headwise::testing
