#include "headwise/linear.h"

#include "bench.h"
#include "reference/reference.h"

namespace headwise::bench {
namespace {

struct LinearCase {
  int64_t rows, inner, columns;
};

constexpr LinearCase kCases[] = {{1, 4096, 4096}, {16, 512, 512}, {1600, 512, 512}, {2048, 512, 2048}};

template <typename T>
class LinearProblem {
 public:
  using Type = T;

  explicit LinearProblem(const LinearCase& c)
      : x_({c.rows, c.inner}), weight_({c.inner, c.columns}), bias_({c.columns}), out_({c.rows, c.columns}) {
    x_.FillNormal(1);
    weight_.FillNormal(2);
    bias_.FillNormal(3);
    flops = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.inner) * static_cast<double>(c.columns);
    bytes = x_.bytes() + weight_.bytes() + bias_.bytes() + out_.bytes();
  }

  void Run() { Linear(x_.read(), weight_.read(), bias_.data(), out_.view()); }

  double Error() const {
    return LargestOnSample(x_.read().shape[0], [&](int64_t begin, int64_t size) {
      return RelativeError(Slice(out_.view(), 0, begin, size),
                           reference::Linear<T>(Slice(x_.read(), 0, begin, size), weight_.read(), bias_.data()));
    });
  }

  double flops, bytes;

 private:
  Tensor<T, 2> x_, weight_;
  Tensor<T, 1> bias_;
  Tensor<T, 2> out_;
};

}  // namespace

void RegisterLinear(const Setting& setting) {
  for (const LinearCase& c : kCases) {
    Register<LinearProblem<float>>("linear/" + Join({c.rows, c.inner, c.columns}), c, setting);
  }
}

}  // namespace headwise::bench
