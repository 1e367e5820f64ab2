// softmax, log_softmax and logsumexp.
#include "headwise/softmax.h"

#include "fuzz.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

// Over the finite elements of each lane.
struct Lane {
  double max_abs = 0, low = kInf, high = -kInf;
};

template <typename T>
std::vector<Lane> LanesOf(View<const T, 3> x) {
  std::vector<Lane> lanes;
  for (std::int64_t o = 0; o < x.shape[0]; ++o) {
    for (std::int64_t p = 0; p < x.shape[2]; ++p) {
      Lane lane;
      for (std::int64_t i = 0; i < x.shape[1]; ++i) {
        const double number = reference::ToDouble(*x.at(o, i, p));
        if (!std::isfinite(number)) continue;
        lane.max_abs = std::max(lane.max_abs, std::abs(number));
        lane.low = std::min(lane.low, number);
        lane.high = std::max(lane.high, number);
      }
      lanes.push_back(lane);
    }
  }
  return lanes;
}

template <typename T>
void Check(Bytes& bytes) {
  const int operation = bytes.Byte() % 3;
  std::int64_t outer = bytes.Size(4, 40), n = bytes.Size(40, 600), inner = bytes.Bool() ? 1 : bytes.Size(20, 300);
  if (inner == 1 && bytes.OneIn(64)) outer = 1 + bytes.Byte() % 2, n = bytes.Integer(4000, 67'000);
  const std::array<std::int64_t, 3> order = inner == 1 ? std::array<std::int64_t, 3>{0, 2, 1} : Tensor<T, 3>::InOrder();
  const Guard guard = bytes.Side();
  const std::int64_t pad = bytes.Bool() ? 3 : 0;
  const Tensor<T, 3> x({outer, n, inner}, guard, order, pad);
  const Tensor<T, 3> out({outer, operation == 2 ? 1 : n, inner}, guard, order, operation == 2 ? 0 : pad);
  Fill(x, bytes);
  const bool in_place = operation != 2 && bytes.OneIn(4);
  const Tensor<T, 3>& written = in_place ? x : out;

  View<const T, 3> input = x.read();
  // The middle axis may have any stride for columns; for rows it is contiguous.
  if (!in_place && inner != 1) Twist(input, bytes);
  if (inner != 1 && n == 0) return;
  const std::vector<Lane> lanes = LanesOf(input);
  const std::vector<double> expected = operation == 0   ? reference::Softmax(input)
                                       : operation == 1 ? reference::LogSoftmax(input)
                                                        : reference::LogSumExp(input);
  const std::vector<T> before = x.Values();
  const auto run = [&] {
    std::size_t i = 0;
    if (in_place) x.ForEach([&](T& element) { element = before[i++]; });
    if (!in_place) Clear(out);
    if (operation == 0) Softmax(input, written.view());
    if (operation == 1) LogSoftmax(input, written.view());
    if (operation == 2) LogSumExp(input, {out.data(), {outer, inner}, {out.view().stride[0], 1}});
  };
  const auto margin = [&](std::size_t i) {
    const auto across = static_cast<std::size_t>(inner), along = static_cast<std::size_t>(operation == 2 ? 1 : n);
    const Lane& lane = lanes[i / (across * along) * across + i % across];
    const double lost = std::log(static_cast<double>(n + 1));
    if (operation > 0) return 4 * kEpsilon<T> * (1 + lane.max_abs + lost);
    // x - max is rounded, which exp turns into a relative error; beyond its range the result is 0.
    const double spread = std::min(std::max(0.0, lane.high - lane.low), -std::log(kDenormMin<T>));
    return (8 + spread) * kEpsilon<T> * expected[i] + 2 * kDenormMin<T>;
  };
  const auto compare = [&] { ExpectClose("softmax", written, expected, margin); };
  OnEveryTarget(bytes, false, run, compare, [&] { return BitsOf(written); });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
