// Arguments of attention from a fuzzer's bytes, and the tolerance of each result.
#pragma once

#include <typeinfo>

#include "attention_arguments.h"
#include "fuzz.h"

namespace headwise::testing {

inline AttentionShape ShapeFrom(Bytes& bytes) {
  AttentionShape shape;
  shape.batch = bytes.Size(2, 3);
  shape.kv_heads = 1 + bytes.Byte() % 2;
  shape.group = 1 + bytes.Byte() % 4;
  shape.query_len = bytes.Size(20, 130);
  shape.key_len = bytes.Size(40, 1300);
  shape.head_dim = 1 + bytes.Size(40, 130);
  shape.value_dim = bytes.Bool() ? shape.head_dim : bytes.Size(40, 130);
  shape.guard = bytes.Side();
  shape.order = bytes.Bool() ? kSeqFirst : kHeadsFirst;
  shape.pad = bytes.Bool() ? 3 : 0;
  return shape;
}

inline double WorkOf(const AttentionShape& shape) {
  return static_cast<double>(shape.batch * shape.kv_heads * shape.group * shape.query_len * shape.key_len *
                             (shape.head_dim + shape.value_dim + 8));
}

template <typename T>
class AttentionInput : public AttentionArguments<T> {
 public:
  using Number = Accumulator<T>;

  AttentionInput(const AttentionShape& shape, Bytes& bytes) : AttentionArguments<T>(shape, 1) {
    auto& args = this->args;
    Fill(this->query, bytes);
    Fill(this->key, bytes);
    Fill(this->value, bytes);
    const int options = bytes.Byte(), more = bytes.Byte();
    int axes = 0;
    const auto full = [&] {
      axes = bytes.Byte();
      return std::array<bool, 4>{(axes & 1) == 0, (axes & 2) == 0, (axes & 4) == 0, (axes & 8) == 0};
    };
    const double chances[] = {0.7, 0.1, 0.0, 1.0, 0.97};
    if (options & 1) this->WantLse();
    if (options & 2) this->WantWeights();
    for (int masks = options >> 2 & 3; masks > 1; --masks) {
      const double chance = bytes.Pick(chances);
      this->AddKeep(chance, full());
    }
    for (int biases = options >> 4 & 3; biases > 1; --biases) {
      const std::array<bool, 4> whole = full();
      const double dropped = bytes.Bool() ? 0.3 : 0;
      if (kIs16Bit<T> && (axes & 16) != 0) {
        this->AddStoredBias(1, dropped, whole);
        if (bytes.Bool()) Fill(this->stored_biases_.back(), bytes);
      } else {
        this->AddBias(1, dropped, whole);
        if (bytes.Bool()) Fill(this->biases_.back(), bytes);
      }
    }
    if ((options >> 6 & 3) == 3) this->AddDropout(bytes.Bool() ? 0.3 : 0.9, full());
    if ((more & 3) == 3) {
      this->AddSlopes(0.2);
      if (bytes.Bool()) Fill(*this->slopes_, bytes);
    }
    if ((more >> 2 & 3) == 3) {
      this->AddSinks();
      if (bytes.Bool()) Fill(*this->sinks_, bytes);
    }
    const double caps[] = {1.5, 30, 1e-3, 1e4};
    if ((more >> 4 & 3) == 3) args.spec.softcap = bytes.Pick(caps);
    if ((more >> 6 & 3) == 3) args.spec.left = bytes.Integer(0, 40);
    const int where = bytes.Byte();
    if (where & 1) args.spec.right = where & 2 ? 0 : bytes.Integer(0, 40);
    if (where & 4) args.spec.offset = where & 8 ? shape.key_len - shape.query_len : bytes.Integer(0, 800) - 100;
    const double scales[] = {0, -0.3, 1, 100, 1e-6, 1e-30};
    if ((where >> 4 & 3) == 3) args.spec.scale = bytes.Pick(scales);
    const Precision precisions[] = {Precision::kHighest, Precision::kHighest, Precision::kHigh, Precision::kMedium};
    if (!std::is_same_v<T, double>) args.spec.precision = bytes.Pick(precisions);
    const bool poison = (where >> 6 & 3) != 0;
    // In separate statements, because each reads bytes.
    const bool query_twisted = Twist(args.query, bytes), key_twisted = Twist(args.key, bytes);
    const bool value_twisted = Twist(args.value, bytes);
    if (poison && !query_twisted && !key_twisted && !value_twisted) this->Poison();
  }

  // The reference's results, and which of them are defined.
  void Expect() {
    expected_ = reference::Attention(this->args);
    FindAmbiguous();
  }

  // Whether any row has results that are not defined.
  bool HasUnsureRow() const { return std::count(unsure_rows_.begin(), unsure_rows_.end(), true) > 0; }

  void ClearResults() const {
    Clear(this->output);
    if (this->args.lse) Clear(this->lse);
    if (this->args.weights) Clear(this->weights);
  }

  void Append(Bits& bits) const {
    testing::Append(this->output, bits);
    if (this->args.lse) testing::Append(this->lse, bits);
    if (this->args.weights) testing::Append(this->weights, bits);
  }

  std::string Text() const {
    const auto& args = this->args;
    const AttentionShape& shape = this->shape;
    std::ostringstream text;
    text << (std::is_same_v<T, Float16>    ? "float16"
             : std::is_same_v<T, BFloat16> ? "bfloat16"
                                           : typeid(T).name())
         << ", batch " << shape.batch << ", kv_heads " << shape.kv_heads << ", group " << shape.group << ", query_len "
         << shape.query_len << ", key_len " << shape.key_len << ", head_dim " << shape.head_dim << ", value_dim "
         << shape.value_dim << ", |query| " << MaxAbs(this->query) << ", |key| " << MaxAbs(this->key) << ", |value| "
         << MaxAbs(this->value) << ", weights " << static_cast<bool>(args.weights) << ", lse "
         << static_cast<bool>(args.lse) << ", masks " << args.spec.keep.size() << ", biases " << args.spec.bias.size()
         << ", in T " << this->stored_biases_.size() << ", drop " << static_cast<bool>(args.spec.dropout_keep)
         << ", slopes " << (args.spec.alibi_slopes != nullptr) << ", sinks " << (args.spec.sinks != nullptr)
         << ", scale " << args.spec.scale << ", softcap " << args.spec.softcap << ", left " << args.spec.left
         << ", right " << args.spec.right << ", offset " << args.spec.offset << ", precision "
         << static_cast<int>(args.spec.precision);
    return text.str();
  }

  void Compare() const {
    Describe() = [this] { return Text(); };
    if (!this->output.PaddingIntact() || !this->weights.PaddingIntact()) Fail("padding written");
    const double tolerance = WeightTolerance();
    if (!(tolerance < 0.25)) return;
    const auto& args = this->args;
    const double of_values = OutputMargin(tolerance);
    const auto keys = static_cast<std::size_t>(this->shape.key_len),
               width = static_cast<std::size_t>(args.value.shape[3]);
    ExpectClose("output", this->output, expected_.output, [&](std::size_t i) {
      if (unsure_rows_[i / width] || (!ambiguous_.empty() && ambiguous_[i])) return kNaN;
      // A row of NaN whose weights are all dropped by dropout may be NaN or 0.
      return std::isnan(expected_.lse[i / width]) && args.spec.dropout_keep && expected_.output[i] == 0 ? kNaN
                                                                                                        : of_values;
    });
    if (args.lse) {
      ExpectClose("lse", this->lse, expected_.lse, [&](std::size_t i) { return unsure_rows_[i] ? kNaN : tolerance; });
    }
    if (args.weights) {
      ExpectClose("weights", this->weights, expected_.weights,
                  [&](std::size_t i) { return unsure_rows_[i / keys] ? kNaN : tolerance; });
    }
  }

 protected:
  // Relative error of a bf16 split.
  double SplitEpsilon() const {
    if (!this->OnBf16()) return 0;
    if (std::is_same_v<T, BFloat16>) return 0;
    if (this->args.spec.precision == Precision::kMedium) return 0x1p-6;
    if (std::is_same_v<T, Float16>) return 0x1p-16;
    return this->args.spec.precision == Precision::kHigh ? 0x1p-14 : 0;
  }
  double ValueEpsilon() const {
    return std::max(this->WeightRounding(), std::is_same_v<T, BFloat16> ? 0.0 : SplitEpsilon());
  }
  // Numbers below this count as 0, or lose bits.
  double Tiny() const { return this->OnBf16() ? 0x1p-124 : kDenormMin<T>; }

  // Like Tolerance(), but for any numbers: the worst case instead of the usual one; infinite if anything may overflow.
  double WeightTolerance() const {
    const auto& args = this->args;
    const double width = static_cast<double>(this->shape.head_dim), scale = std::abs(args.spec.scale);
    const double queries = MaxAbs(this->query), keys = MaxAbs(this->key), product = queries * keys * width;
    double others = this->MaxOfBiases();
    if (this->slopes_) {
      others += MaxAbs(*this->slopes_) *
                static_cast<double>(this->shape.query_len + this->shape.key_len + std::abs(args.spec.offset));
    }
    if (this->sinks_) others += MaxAbs(*this->sinks_);
    others += args.spec.softcap;  // an infinite product of small numbers becomes softcap
    constexpr double kMax = kMaxFinite<T> / 4;
    if (product * std::max(1.0, scale) > kMax || queries * scale > kMax || others > kMax) return kInf;
    const double lost = Tiny() * width * (keys * std::max(1.0, scale) + queries * scale + scale);
    return (16 + static_cast<double>(this->shape.key_len) / 32 + 2 * others) * kEpsilon<T> +
           scale * product * (2 * kEpsilon<T> + SplitEpsilon()) + lost;
  }

 private:
  double OutputMargin(double tolerance) const {
    const double factor = this->args.spec.dropout_keep ? std::max(1.0, std::abs(this->args.spec.dropout_scale)) : 1;
    const double values = MaxAbs(this->value) * factor, keys = static_cast<double>(this->shape.key_len);
    // Sums are divided at the end; before that they may be as large as the sum of all values.
    if (values * (keys + 1) > kMaxFinite<T> / 4) return kNaN;
    return (2 * tolerance + ValueEpsilon()) * values + Tiny() * (keys + 2) * factor;
  }

  // Marks results that are not defined: rows that keep nothing and have a sink of +inf or NaN; rows where an infinite
  // key meets a query element that the scale makes subnormal; outputs where a value that is not finite meets a weight
  // that may count as 0.
  void FindAmbiguous() {
    const auto& args = this->args;
    const auto [batch, heads, query_len, value_dim] = args.output.shape;
    const std::int64_t key_len = this->shape.key_len;
    unsure_rows_.assign(expected_.lse.size(), false);
    for (std::size_t row = 0; args.spec.sinks && row < unsure_rows_.size(); ++row) {
      const Number sink = args.spec.sinks[static_cast<std::int64_t>(row) / query_len % heads];
      const auto weight = expected_.weights.begin() + static_cast<std::int64_t>(row) * key_len;
      unsure_rows_[row] = !(sink <= kMaxFinite<T>)&&std::count(weight, weight + key_len, 0.0) == key_len;
    }
    if (!AllFinite(this->key)) {
      ForEachKept([&](std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t j, std::int64_t row) {
        if (MayVanishBesideInfinity(n, h, i, j)) unsure_rows_[static_cast<std::size_t>(row)] = true;
      });
    }
    ambiguous_.clear();
    if (AllFinite(this->value)) return;
    ambiguous_.resize(expected_.output.size());
    ForEachKept([&, width = value_dim](std::int64_t n, std::int64_t h, std::int64_t, std::int64_t j, std::int64_t row) {
      if (!(expected_.weights[static_cast<std::size_t>(row * key_len + j)] < 0x1p-60)) return;
      for (std::int64_t d = 0; d < width; ++d) {
        if (std::isfinite(reference::ToDouble(*args.value.at(n, h / this->shape.group, j, d)))) continue;
        ambiguous_[static_cast<std::size_t>(row * width + d)] = true;
      }
    });
  }

  static bool AllFinite(const Tensor<T, 4>& tensor) {
    bool all = true;
    tensor.ForEach([&](T& element) { all = all && std::isfinite(reference::ToDouble(element)); });
    return all;
  }

  // visit(batch entry, head, query, key, row) for the keys that each row keeps.
  template <class Visit>
  void ForEachKept(const Visit& visit) const {
    const auto [batch, heads, query_len, width] = this->args.output.shape;
    for (std::int64_t n = 0, row = 0; n < batch; ++n) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t i = 0; i < query_len; ++i, ++row) {
          for (std::int64_t j = 0; j < this->shape.key_len; ++j) {
            if (this->Kept(n, h, i, j)) visit(n, h, i, j, row);
          }
        }
      }
    }
  }

  // Whether a query element times the scale is subnormal, and may count as 0, where the key's element is infinite.
  bool MayVanishBesideInfinity(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto& args = this->args;
    for (std::int64_t d = 0; d < this->shape.head_dim; ++d) {
      if (!std::isinf(reference::ToDouble(*args.key.at(n, h / this->shape.group, j, d)))) continue;
      const double number = std::abs(args.spec.scale * reference::ToDouble(*args.query.at(n, h, i, d)));
      if (number > 0 && number < kDenormMin<T>) return true;
    }
    return false;
  }

  reference::AttentionResult expected_;
  std::vector<bool> unsure_rows_;
  std::vector<bool> ambiguous_;  // of outputs; empty: none
};

}  // namespace headwise::testing
