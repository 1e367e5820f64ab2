#include "headwise/alibi.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

using Axes = std::array<std::int64_t, 4>;

template <typename T>
void Check(Bytes& bytes) {
  const Axes shape{bytes.Size(2, 4), bytes.Size(4, 12), bytes.Size(12, 80), bytes.Size(70, 700)};
  if (shape[0] * shape[1] * shape[2] * shape[3] > 40'000) return;
  const std::int64_t far = std::int64_t{1} << 40;
  const std::int64_t offsets[] = {0, shape[3] - shape[2], 1000, -1000, far, -far, 5, -7};
  const std::int64_t offset = bytes.Pick(offsets), pad = bytes.Bool() ? 3 : 0;
  const Guard guard = bytes.Side();
  const Tensor<T, 4> scores(shape, guard, {0, 1, 2, 3}, pad), out(shape, guard, {0, 1, 2, 3}, pad);
  const Tensor<Accumulator<T>, 1> slopes({shape[1]}, guard);
  Fill(scores, bytes);
  Fill(slopes, bytes);
  View<const T, 4> input = scores.read();
  const bool in_place = bytes.OneIn(4);
  if (!in_place) Twist(input, bytes);
  const Tensor<T, 4>& written = in_place ? scores : out;

  const std::vector<double> expected = reference::AddAlibi(input, slopes.data(), offset);
  std::vector<double> margins;
  for (std::int64_t n = 0; n < shape[0]; ++n) {
    for (std::int64_t h = 0; h < shape[1]; ++h) {
      for (std::int64_t i = 0; i < shape[2]; ++i) {
        for (std::int64_t j = 0; j < shape[3]; ++j) {
          const auto distance = static_cast<double>(std::abs(i + offset - j));
          const double score = reference::ToDouble(*input.at(n, h, i, j));
          const auto slope = static_cast<double>(slopes.data()[h]);
          margins.push_back(MarginOfSum<T>({{{score, 1.0}, {slope, distance}}}));
        }
      }
    }
  }
  const std::vector<T> before = scores.Values();
  const auto run = [&] {
    std::size_t i = 0;
    if (in_place) scores.ForEach([&](T& element) { element = before[i++]; });
    if (!in_place) Clear(out);
    AddAlibi(input, slopes.data(), offset, written.view());
  };
  const auto compare = [&] { ExpectClose("alibi", written, expected, [&](std::size_t i) { return margins[i]; }); };
  OnEveryTarget(bytes, false, run, compare, [&] { return BitsOf(written); });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
