#include "headwise/activation.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

template <typename T>
void Check(Bytes& bytes) {
  const Activation functions[] = {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu};
  const Activation f = bytes.Pick(functions);
  const std::int64_t rows = bytes.Size(8, 60), n = bytes.Size(70, 1100), pad = bytes.Bool() ? 3 : 0;
  const Guard guard = bytes.Side();
  const auto empty = [&] { return Tensor<T, 2>({rows, n}, guard, {0, 1}, pad); };
  const Tensor<T, 2> x = empty(), up = empty(), d_out = empty(), out = empty(), d_x = empty(), d_up = empty();
  Fill(x, bytes);
  Fill(up, bytes);
  Fill(d_out, bytes);
  View<const T, 2> input = x.read();
  Twist(input, bytes);
  const bool gated = bytes.Bool();
  const View<const T, 2> factor = gated ? up.read() : View<const T, 2>();

  const std::vector<double> expected = reference::Activate(f, input, factor);
  const auto gradients = reference::ActivateBackward(f, d_out.read(), input, factor);
  const auto run = [&] {
    for (const auto* tensor : {&out, &d_x, &d_up}) Clear(*tensor);
    Activate(f, input, factor, out.view());
    ActivateBackward(f, d_out.read(), input, factor, d_x.view(), gated ? d_up.view() : View<T, 2>());
  };
  // gelu_tanh multiplies rounding errors by the argument of its exponential.
  const double relative = kEpsilon<T> * (f == Activation::kGeluTanh ? 1000 : 10);
  // Factors whose product overflows in T have no useful bound.
  const double largest = (MaxAbs(d_out) + 1) * (MaxAbs(up) + 1);
  const auto near = [&](const std::vector<double>& exact, double size) {
    return [&exact, relative, size, largest](std::size_t i) {
      if (!(std::abs(exact[i]) < kMaxFinite<T> / 4) || !(largest < kMaxFinite<T> / 4)) return kNaN;
      return relative * std::abs(exact[i]) + size;
    };
  };
  const double tiny = 4 * kDenormMin<T> * (1 + largest);
  const auto compare = [&] {
    ExpectClose("activation", out, expected, near(expected, tiny));
    ExpectClose("activation d_x", d_x, gradients.x, near(gradients.x, 40 * kEpsilon<T> * largest));
    if (gated) ExpectClose("activation d_up", d_up, gradients.up, near(gradients.up, tiny));
  };
  OnEveryTarget(bytes, false, run, compare, [&] {
    auto bits = BitsOf(out);
    const auto more = BitsOf(d_x);
    bits.insert(bits.end(), more.begin(), more.end());
    return bits;
  });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
