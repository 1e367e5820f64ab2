#include "fuzz.h"
#include "headwise/layer_norm.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

template <typename T>
void Check(Bytes& bytes) {
  using Number = Accumulator<T>;
  const bool centered = bytes.Bool(), scaled = bytes.Bool();
  const double epsilons[] = {1e-5, 1e-12, 1.0, 0.0};
  const double eps = bytes.Pick(epsilons);
  const std::int64_t rows = bytes.Size(8, 60), n = bytes.Size(70, 1100), pad = bytes.Bool() ? 3 : 0;
  const Guard guard = bytes.Side();
  const Tensor<T, 2> x({rows, n}, guard, {0, 1}, pad), d_out({rows, n}, guard, {0, 1}, pad);
  const Tensor<T, 2> d_x({rows, n}, guard, {0, 1}, pad);
  const Tensor<T, 1> gamma({n}, guard);
  const Tensor<Number, 1> d_gamma({n}, guard), d_beta({n}, guard);
  Fill(x, bytes);
  Fill(d_out, bytes);
  Fill(gamma, bytes);
  const T* const factors = scaled ? gamma.data() : nullptr;
  View<const T, 2> input = x.read();
  Twist(input, bytes);

  const reference::NormGradients expected = reference::NormBackward(centered, d_out.read(), input, factors, eps);
  const auto run = [&] {
    Clear(d_x), Clear(d_gamma), Clear(d_beta);
    if (centered) {
      LayerNormBackward(d_out.read(), input, factors, eps, d_x.view(), d_gamma.data(), d_beta.data());
    } else {
      RmsNormBackward(d_out.read(), input, factors, eps, d_x.view(), d_gamma.data());
    }
  };

  // The standard deviation of each row, and how much it magnifies the rounding errors of x.
  std::vector<double> deviations, conditions;
  double worst = 1;
  for (std::int64_t r = 0; r < rows; ++r) {
    double mean = 0, squares = 0, largest = 0;
    for (std::int64_t i = 0; i < n; ++i) mean += reference::ToDouble(*input.at(r, i)) / static_cast<double>(n);
    for (std::int64_t i = 0; i < n; ++i) {
      const double number = reference::ToDouble(*input.at(r, i)), centre = centered ? number - mean : number;
      squares += centre * centre / static_cast<double>(n), largest = std::max(largest, std::abs(number));
    }
    deviations.push_back(std::sqrt(squares + eps));
    conditions.push_back(1 + largest / deviations.back());
    worst = std::max(worst, conditions.back());
  }
  const double width = static_cast<double>(n), count = static_cast<double>(rows), root = std::sqrt(width + 1);
  const double along = MaxAbs(d_out) * (scaled ? std::max(1.0, MaxAbs(gamma)) : 1), large = MaxAbs(x);
  const auto finite = [](const auto& tensor) {
    bool all = true;
    tensor.ForEach([&](T& element) { all = all && std::isfinite(reference::ToDouble(element)); });
    return all;
  };
  // Products that overflow, and rows whose variance is lost, have no useful bound.
  const bool ordinary = finite(x) && finite(d_out) && finite(gamma) && eps > 0 && worst < 1e3 && along < 1e12 &&
                        large < 1e12 && large * large * width < kMaxFinite<T> / 4;
  const auto compare = [&] {
    const double error = (64 + 2 * width) * kEpsilon<T>;
    ExpectClose("d_x", d_x, expected.x, [&](std::size_t i) {
      const std::size_t r = i / static_cast<std::size_t>(n);
      const double condition = conditions[r] * conditions[r] * root;
      const double lost = (width + 4) * kDenormMin<T> * std::max(1.0, 1 / deviations[r]);  // of subnormal products
      return ordinary ? condition * (error * along / deviations[r] + lost) : kNaN;
    });
    const double relative = error * worst * worst * root + count * kEpsilon<T>;
    const double sums = relative * count * MaxAbs(d_out) + 4 * count * kDenormMin<T>;
    ExpectClose("d_gamma", d_gamma, expected.gamma, [&](std::size_t) { return ordinary ? sums : kNaN; });
    if (!centered) return;
    ExpectClose("d_beta", d_beta, expected.beta, [&](std::size_t) { return ordinary ? sums : kNaN; });
  };
  OnEveryTarget(bytes, false, run, compare, [&] {
    Bits bits = BitsOf(d_x);
    Append(d_gamma, bits), Append(d_beta, bits);
    return bits;
  });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
