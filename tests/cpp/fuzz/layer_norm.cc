#include "headwise/layer_norm.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

template <typename T>
void Check(Bytes& bytes) {
  const double epsilons[] = {1e-5, 0.0, 1e-12, 1.0, 1e-30};
  const double eps = bytes.Pick(epsilons);
  const std::int64_t rows = bytes.Size(8, 60), n = bytes.Size(70, 1100), pad = bytes.Bool() ? 3 : 0;
  const Guard guard = bytes.Side();
  const Tensor<T, 2> x({rows, n}, guard, {0, 1}, pad), out({rows, n}, guard, {0, 1}, pad);
  const Tensor<T, 1> gamma({n}, guard), beta({n}, guard);
  Fill(x, bytes);
  // An infinite factor of a number that is 0 up to rounding may give any result.
  Fill(gamma, bytes, false);
  Fill(beta, bytes);
  const double places[] = {0.0, 0.0, 1.0, -1e3, 1e5};
  if (const double place = bytes.Pick(places); place != 0) {
    x.ForEach([&](T& element) { element = reference::Nearest<T>(reference::ToDouble(element) + place); });
  }
  View<const T, 2> input = x.read();
  const bool in_place = bytes.OneIn(4);
  if (!in_place) Twist(input, bytes);
  const Tensor<T, 2>& written = in_place ? x : out;

  const std::vector<double> expected = reference::LayerNorm(input, gamma.data(), beta.data(), eps);
  // Squares that overflow, or that are subnormal with eps 0, have no useful bound.
  const double largest = MaxAbs(x), width = static_cast<double>(n);
  const bool ordinary = largest * largest * 4 * (width + 1) < kMaxFinite<T> && (eps > 0 || largest * largest > 1e-25);
  const std::vector<T> before = x.Values();
  const auto run = [&] {
    std::size_t i = 0;
    if (in_place) x.ForEach([&](T& element) { element = before[i++]; });
    if (!in_place) Clear(out);
    LayerNorm(input, gamma.data(), beta.data(), eps, written.view());
  };
  const auto margin = [&](std::size_t i) {
    const double factor = std::abs(reference::ToDouble(gamma.data()[i % static_cast<std::size_t>(n)]));
    const double added = std::abs(reference::ToDouble(beta.data()[i % static_cast<std::size_t>(n)]));
    if (!ordinary || 4 * factor * std::sqrt(width) + (std::isfinite(added) ? added : 0) > kMaxFinite<T>) return kNaN;
    if (!std::isfinite(added)) return 0.0;
    const double scaled = std::abs(expected[i]) + added;
    return kEpsilon<T> * ((16 + width) * (scaled + factor) + 2 * added) + 2 * kDenormMin<T>;
  };
  const auto compare = [&] { ExpectClose("layer_norm", written, expected, margin); };
  OnEveryTarget(bytes, false, run, compare, [&] { return BitsOf(written); });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
