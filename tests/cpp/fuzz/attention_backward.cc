#include "attention.h"
#include "attention_backward_arguments.h"

namespace headwise::testing {
namespace {

constexpr double kMaxWork = 5e5;

template <typename T>
class BackwardInput : public BackwardArguments<T, AttentionInput<T>> {
  using Number = Accumulator<T>;

 public:
  BackwardInput(const AttentionShape& shape, Bytes& bytes) : BackwardArguments<T, AttentionInput<T>>(shape, bytes) {
    Fill(this->d_output, bytes);
    const int options = bytes.Byte();
    this->args.weights = {};
    if ((options & 3) == 3) this->AddLseGradients();
    if ((options >> 2 & 3) == 3) this->AddWeightGradients();
    if (options & 16) this->WantParameters();
    if ((options >> 5 & 3) == 3) this->gradients.d_query = {};
    if (options >> 7) this->gradients.d_key = {};
  }

  void Run() {
    this->RunForward();
    this->Expect();
    expected_ = {};
    this->ForEachGradient(expected_ = reference::AttentionBackward(this->args, this->gradients),
                          [](const char*, const auto& tensor, const reference::Gradient&) { Clear(tensor); });
    this->RunBackward();
  }

  void Compare() const {
    Describe() = [this] { return this->Text(); };
    const auto& args = this->args;
    const auto largest = [](const auto& tensor) { return std::max(1.0, MaxAbs(tensor)); };
    const double dropout = args.spec.dropout_keep ? std::abs(args.spec.dropout_scale) : 1;
    const double width = static_cast<double>(this->shape.value_dim), scale = std::max(1.0, std::abs(args.spec.scale));
    const auto queries = static_cast<double>(this->shape.query_len * this->shape.group * this->shape.batch);
    const auto keys = static_cast<double>(this->shape.key_len * this->heads);
    // Of a number that P is multiplied by, and of a number that dS is multiplied by.
    double by_p = largest(this->d_output) * largest(this->value) * width * std::max(1.0, dropout);
    if (this->gradients.d_lse) by_p += MaxAbs(this->d_lse);
    if (this->gradients.d_weights) by_p += MaxAbs(this->d_weights);
    const double by_ds = largest(this->query) * largest(this->key) + queries + keys + std::abs(args.spec.offset);
    const double tolerance = this->WeightTolerance();
    const bool ordinary =
        !this->HasUnsureRow() && tolerance < 0.25 && by_p * by_ds * scale * (queries + keys) < kMaxFinite<T> / 4;
    // Weights below 2^-86 count as 0, as do subnormal numbers.
    const double lost = (0x1p-80 + this->Tiny()) * by_p * by_ds * scale * (queries + keys);
    const double relative = 6 * tolerance + (width + queries + keys + 32) * kEpsilon<T>;
    this->ForEachGradient(expected_, [&](const char* name, const auto& tensor, const reference::Gradient& gradient) {
      if (!tensor.PaddingIntact()) Fail(std::string(name) + ": padding written");
      ExpectClose(name, tensor, gradient.values, [&](std::size_t i) {
        const double size = gradient.sizes[i];
        return ordinary && std::isfinite(size) && std::isfinite(gradient.values[i]) ? relative * size + lost : kNaN;
      });
    });
  }

  void Append(Bits& bits) const {
    this->ForEachGradient(
        expected_, [&](const char*, const auto& tensor, const reference::Gradient&) { testing::Append(tensor, bits); });
  }

 private:
  reference::AttentionGradientsResult expected_;
};

template <typename T>
void Check(Bytes& bytes) {
  const AttentionShape shape = ShapeFrom(bytes);
  if (WorkOf(shape) > kMaxWork) return;
  const bool any_shape = bytes.Byte() % 4 != 3;
  BackwardInput<T> input(shape, bytes);
  OnEveryTarget(
      bytes, any_shape, [&] { input.Run(); }, [&] { input.Compare(); },
      [&] {
        Bits bits;
        input.Append(bits);
        return bits;
      });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
