#include "headwise/rope.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct RopeCase {
  const char* name;
  int64_t batch, heads, seq, dim;
  bool interleaved;
};

constexpr RopeCase kCases[] = {
    {"rope/1x8x64x64", 1, 8, 64, 64, false},
    {"rope/4x32x1024x128", 4, 32, 1024, 128, false},
    {"rope/4x32x1024x128/interleaved", 4, 32, 1024, 128, true},
};

template <typename T>
class RopeProblem {
 public:
  using Type = T;

  explicit RopeProblem(const RopeCase& c)
      : interleaved_(c.interleaved),
        x_({c.batch, c.heads, c.seq, c.dim}),
        out_({c.batch, c.heads, c.seq, c.dim}),
        cos_({c.seq, c.dim / 2}),
        sin_({c.seq, c.dim / 2}) {
    x_.FillNormal(1);
    for (int64_t i = 0; i < c.seq; ++i) {
      for (int64_t k = 0; k < c.dim / 2; ++k) {
        const double angle =
            static_cast<double>(i) * std::pow(10000.0, -2.0 * static_cast<double>(k) / static_cast<double>(c.dim));
        *cos_.view().at(i, k) = static_cast<Accumulator<T>>(std::cos(angle));
        *sin_.view().at(i, k) = static_cast<Accumulator<T>>(std::sin(angle));
      }
    }
    bytes = x_.bytes() + out_.bytes() + cos_.bytes() + sin_.bytes();
  }

  void Run() { ApplyRope(x_.read(), ForEveryHead(cos_), ForEveryHead(sin_), interleaved_, out_.view()); }

  double Error() const {
    return LargestOnSample(x_.read().shape[2], [&](int64_t begin, int64_t size) {
      return RelativeError(
          Slice(out_.view(), 2, begin, size),
          reference::ApplyRope(Slice(x_.read(), 2, begin, size), Slice(ForEveryHead(cos_), 2, begin, size),
                               Slice(ForEveryHead(sin_), 2, begin, size), interleaved_));
    });
  }

  double flops = 0, bytes;

 private:
  View<const Accumulator<T>, 4> ForEveryHead(const Tensor<Accumulator<T>, 2>& table) const {
    const View<const Accumulator<T>, 2> view = table.read();
    const auto& shape = x_.read().shape;
    return {view.data, {shape[0], shape[1], view.shape[0], view.shape[1]}, {0, 0, view.stride[0], 1}};
  }

  bool interleaved_;
  Tensor<T, 4> x_, out_;
  Tensor<Accumulator<T>, 2> cos_, sin_;
};

}  // namespace

void RegisterRope(const Setting& setting) {
  for (const RopeCase& c : kCases) {
    Register<RopeProblem<Float16>>(c.name, c, setting);
    Register<RopeProblem<BFloat16>>(c.name, c, setting);
    Register<RopeProblem<float>>(c.name, c, setting);
  }
}

}  // namespace headwise::bench
