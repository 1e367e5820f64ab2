#include "headwise/layer_norm.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct LayerNormCase {
  int64_t rows, n;
};

constexpr LayerNormCase kCases[] = {{64, 512}, {4096, 768}, {32768, 1024}};

template <typename T>
class LayerNormProblem {
 public:
  using Type = T;

  explicit LayerNormProblem(const LayerNormCase& c)
      : x_({c.rows, c.n}), out_({c.rows, c.n}), gamma_({c.n}), beta_({c.n}) {
    x_.FillNormal(1);
    gamma_.FillNormal(2);
    beta_.FillNormal(3);
    bytes = x_.bytes() + out_.bytes();
  }

  void Run() { LayerNorm(x_.read(), gamma_.data(), beta_.data(), kEps, out_.view()); }

  double Error() const {
    return LargestOnSample(x_.read().shape[0], [&](int64_t begin, int64_t size) {
      return RelativeError(
          Slice(out_.view(), 0, begin, size),
          reference::LayerNorm<T>(Slice(x_.read(), 0, begin, size), gamma_.data(), beta_.data(), kEps));
    });
  }

  double flops = 0, bytes;

 private:
  static constexpr double kEps = 1e-5;
  Tensor<T, 2> x_, out_;
  Tensor<T, 1> gamma_, beta_;
};

template <typename T>
class RmsNormProblem {
 public:
  using Type = T;

  explicit RmsNormProblem(const LayerNormCase& c) : x_({c.rows, c.n}), out_({c.rows, c.n}), gamma_({c.n}) {
    x_.FillNormal(1);
    gamma_.FillNormal(2);
    bytes = x_.bytes() + out_.bytes();
  }

  void Run() { RmsNorm(x_.read(), gamma_.data(), kEps, out_.view()); }

  double Error() const {
    return LargestOnSample(x_.read().shape[0], [&](int64_t begin, int64_t size) {
      return RelativeError(Slice(out_.view(), 0, begin, size),
                           reference::RmsNorm<T>(Slice(x_.read(), 0, begin, size), gamma_.data(), kEps));
    });
  }

  double flops = 0, bytes;

 private:
  static constexpr double kEps = 1e-6;
  Tensor<T, 2> x_, out_;
  Tensor<T, 1> gamma_;
};

}  // namespace

void RegisterLayerNorm(const Setting& setting) {
  for (const LayerNormCase& c : kCases) {
    Register<LayerNormProblem<Float16>>("layer_norm/" + Join({c.rows, c.n}), c, setting);
    Register<LayerNormProblem<BFloat16>>("layer_norm/" + Join({c.rows, c.n}), c, setting);
    Register<LayerNormProblem<float>>("layer_norm/" + Join({c.rows, c.n}), c, setting);
    Register<RmsNormProblem<BFloat16>>("rms_norm/" + Join({c.rows, c.n}), c, setting);
    Register<RmsNormProblem<float>>("rms_norm/" + Join({c.rows, c.n}), c, setting);
  }
}

}  // namespace headwise::bench
