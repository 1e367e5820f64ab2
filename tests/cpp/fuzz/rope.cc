#include "headwise/rope.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

using Axes = std::array<std::int64_t, 4>;

template <typename T>
void Check(Bytes& bytes) {
  const Axes shape{bytes.Size(2, 4), bytes.Size(3, 8), bytes.Size(12, 150), 2 * bytes.Size(33, 300)};
  if (shape[0] * shape[1] * shape[2] * shape[3] > 40'000) return;
  const bool interleaved = bytes.Bool(), shared = bytes.Bool(), in_place = bytes.OneIn(4);
  const Axes order = bytes.Bool() ? Axes{0, 2, 1, 3} : Axes{0, 1, 2, 3};
  const Guard guard = bytes.Side();
  const std::int64_t pad = bytes.Bool() ? 3 : 0;
  const Tensor<T, 4> x(shape, guard, order, pad), out(shape, guard, order, pad);
  const Axes table{shared ? 1 : shape[0], shared ? 1 : shape[1], shape[2], shape[3] / 2};
  const Tensor<Accumulator<T>, 4> cos(table, guard), sin(table, guard);
  Fill(x, bytes);
  Fill(cos, bytes);
  Fill(sin, bytes);
  const auto broadcast = [&](const Tensor<Accumulator<T>, 4>& tensor) {
    View<const Accumulator<T>, 4> view = tensor.read();
    for (std::size_t axis : {0, 1}) {
      if (shared) view.stride[axis] = 0;
      view.shape[axis] = shape[axis];
    }
    return view;
  };
  View<const T, 4> input = x.read();
  const View<const Accumulator<T>, 4> c = broadcast(cos), s = broadcast(sin);
  if (!in_place) Twist(input, bytes);
  const Tensor<T, 4>& written = in_place ? x : out;

  const std::vector<double> expected = reference::ApplyRope(input, c, s, interleaved);
  std::vector<double> margins(expected.size());
  double* row = margins.data();
  for (std::int64_t n = 0; n < shape[0]; ++n) {
    for (std::int64_t h = 0; h < shape[1]; ++h) {
      for (std::int64_t t = 0; t < shape[2]; ++t, row += shape[3]) {
        for (std::int64_t i = 0; i < shape[3] / 2; ++i) {
          const std::int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + shape[3] / 2;
          const double a = reference::ToDouble(*input.at(n, h, t, first));
          const double b = reference::ToDouble(*input.at(n, h, t, second));
          const auto cosine = static_cast<double>(*c.at(n, h, t, i)), sine = static_cast<double>(*s.at(n, h, t, i));
          row[first] = MarginOfSum<T>({{{a, cosine}, {b, sine}}});
          row[second] = MarginOfSum<T>({{{a, sine}, {b, cosine}}});
        }
      }
    }
  }
  const std::vector<T> before = x.Values();
  const auto run = [&] {
    std::size_t i = 0;
    if (in_place) x.ForEach([&](T& element) { element = before[i++]; });
    if (!in_place) Clear(out);
    ApplyRope(input, c, s, interleaved, written.view());
  };
  const auto compare = [&] { ExpectClose("rope", written, expected, [&](std::size_t i) { return margins[i]; }); };
  OnEveryTarget(bytes, false, run, compare, [&] { return BitsOf(written); });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
