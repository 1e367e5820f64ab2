// Linear, and PackedLinear, which must have the same bits.
#include "headwise/linear.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

using Axes = std::array<std::int64_t, 2>;

// Relative error of a product in bf16 split beyond that of FMA; 0 for three terms.
template <typename T>
double ProductEpsilon(Precision precision) {
  if (!HasBf16Products<T>(precision) || std::is_same_v<T, BFloat16>) return kEpsilon<T>;
  if (precision == Precision::kMedium) return 0x1p-6;
  if (precision == Precision::kHighest) return kEpsilon<T>;
  return std::is_same_v<T, Float16> ? 0x1p-16 : 0x1p-14;  // low * low; for float, also products with the remainder
}

// The results with every NaN replaced by the same: which operand's NaN an addition returns, compilers decide.
template <typename T>
std::vector<T> WithOneNaN(const Tensor<T, 2>& out) {
  std::vector<T> values = out.Values();
  for (T& value : values) {
    if (std::isnan(reference::ToDouble(value))) value = reference::Nearest<T>(kNaN);
  }
  return values;
}

template <typename T>
void Check(Bytes& bytes) {
  const std::int64_t rows = bytes.Size(40, 500), depth = bytes.Size(70, 700), columns = bytes.Size(70, 1100);
  if (rows * depth * columns > 400'000) return;
  const Precision precisions[] = {Precision::kHighest, Precision::kHighest, Precision::kHigh, Precision::kMedium};
  const Precision precision = std::is_same_v<T, double> ? Precision::kHighest : bytes.Pick(precisions);
  const Guard guard = bytes.Side();
  const std::int64_t pad = bytes.Bool() ? 3 : 0;
  const bool any_shape = bytes.Bool();
  const Tensor<T, 2> x({rows, depth}, guard, {0, 1}, pad), out({rows, columns}, guard, {0, 1}, pad);
  const Tensor<T, 2> weight({depth, columns}, guard, bytes.Bool() ? Axes{1, 0} : Axes{0, 1}, pad);
  const Tensor<Accumulator<T>, 1> bias({columns}, guard);
  Fill(x, bytes);
  Fill(weight, bytes);
  Fill(bias, bytes);
  const Accumulator<T>* const added = bytes.OneIn(3) ? nullptr : bias.data();
  View<const T, 2> input = x.read(), factor = weight.read();
  Twist(input, bytes);
  if (weight.view().stride[1] == 1) Twist(factor, bytes);

  const std::vector<double> expected = reference::Linear(input, factor, added);
  // Sums of the magnitudes of the finite products and numbers.
  std::vector<double> products, numbers;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < columns; ++n) {
      double sum = added && std::isfinite(added[n]) ? std::abs(static_cast<double>(added[n])) : 0, single = 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double a = std::abs(reference::ToDouble(*input.at(r, k)));
        const double b = std::abs(reference::ToDouble(*factor.at(k, n)));
        if (std::isfinite(a) && std::isfinite(b)) sum += a * b, single += a + b + 1;
      }
      products.push_back(sum);
      numbers.push_back(single);
    }
  }
  const auto run = [&] {
    Clear(out);
    Linear(input, factor, added, out.view(), precision);
  };
  const PackedLinear<T> packed(factor, added, precision);
  const auto compare = [&] {
    const double relative = ProductEpsilon<T>(precision) + kEpsilon<T> * (4 + static_cast<double>(depth));
    const double absolute = HasBf16Products<T>(precision) ? 0x1p-123 : kDenormMin<T>;
    ExpectClose("linear", out, expected, [&](std::size_t i) {
      // A sum that may overflow on the way may have any result.
      if (!(products[i] < 0.5 * kMaxFinite<T>)) return kNaN;
      return relative * products[i] + absolute * (numbers[i] + 1);
    });
    const std::vector<T> unpacked = WithOneNaN(out);
    Clear(out);
    packed(input, out.view());
    if (!SameBits(WithOneNaN(out), unpacked)) Fail("other bits of packed weights");
    if (!out.PaddingIntact()) Fail("padding written, packed");
  };
  OnEveryTarget(bytes, any_shape, run, compare, [&] { return BitsOf(out); });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
