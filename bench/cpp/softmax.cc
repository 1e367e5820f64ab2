#include "headwise/softmax.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct SoftmaxCase {
  const char* name;
  int64_t outer, n, inner;
};

constexpr SoftmaxCase kCases[] = {
    {"softmax/64x64", 64, 64, 1},
    {"softmax/32768x1024", 32768, 1024, 1},
    {"softmax/64x512x512/axis:0", 1, 64, 512 * 512},
};

template <typename T>
class SoftmaxProblem {
 public:
  using Type = T;

  explicit SoftmaxProblem(const SoftmaxCase& c) : x_({c.outer, c.n, c.inner}), out_({c.outer, c.n, c.inner}) {
    x_.FillNormal(1);
    bytes = x_.bytes() + out_.bytes();
  }

  void Run() { Softmax(x_.read(), out_.view()); }

  double Error() const {
    const int axis = x_.read().shape[0] > 1 ? 0 : 2;
    return LargestOnSample(x_.read().shape[axis], [&](int64_t begin, int64_t size) {
      return RelativeError(Slice(out_.view(), axis, begin, size),
                           reference::Softmax(Slice(x_.read(), axis, begin, size)));
    });
  }

  double flops = 0, bytes;

 private:
  Tensor<T, 3> x_, out_;
};

}  // namespace

void RegisterSoftmax(const Setting& setting) {
  for (const SoftmaxCase& c : kCases) {
    Register<SoftmaxProblem<Float16>>(c.name, c, setting);
    Register<SoftmaxProblem<BFloat16>>(c.name, c, setting);
    Register<SoftmaxProblem<float>>(c.name, c, setting);
    Register<SoftmaxProblem<double>>(c.name, c, setting);
  }
}

}  // namespace headwise::bench
