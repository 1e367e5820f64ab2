#include "headwise/activation.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct ActivationCase {
  Activation f;
  bool gated;
  int64_t rows, n;
};

template <typename T>
class ActivationProblem {
 public:
  using Type = T;

  explicit ActivationProblem(const ActivationCase& c)
      : f_(c.f), gated_(c.gated), x_({c.rows, c.n}), up_({c.gated ? c.rows : 0, c.n}), out_({c.rows, c.n}) {
    x_.FillNormal(1);
    up_.FillNormal(2);
    bytes = x_.bytes() + up_.bytes() + out_.bytes();
  }

  void Run() { Activate(f_, x_.read(), Factor(up_.read()), out_.view()); }

  double Error() const {
    return LargestOnSample(x_.read().shape[0], [&](int64_t begin, int64_t size) {
      const auto up = gated_ ? Slice(up_.read(), 0, begin, size) : View<const T, 2>();
      return RelativeError(Slice(out_.view(), 0, begin, size),
                           reference::Activate<T>(f_, Slice(x_.read(), 0, begin, size), up));
    });
  }

  double flops = 0, bytes;

 private:
  View<const T, 2> Factor(View<const T, 2> up) const { return gated_ ? up : View<const T, 2>(); }

  Activation f_;
  bool gated_;
  Tensor<T, 2> x_, up_, out_;
};

}  // namespace

void RegisterActivation(const Setting& setting) {
  struct Name {
    const char* name;
    Activation f;
    bool gated;
  };
  for (const Name& name : {Name{"gelu", Activation::kGelu, false}, Name{"gelu_tanh", Activation::kGeluTanh, false},
                           Name{"silu", Activation::kSilu, false}, Name{"swiglu", Activation::kSilu, true}}) {
    for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{64, 512}, {4096, 768}, {32768, 1024}}) {
      const ActivationCase c{name.f, name.gated, rows, n};
      const std::string label = std::string(name.name) + "/" + Join({rows, n});
      Register<ActivationProblem<BFloat16>>(label, c, setting);
      Register<ActivationProblem<float>>(label, c, setting);
      Register<ActivationProblem<double>>(label, c, setting);
    }
  }
}

}  // namespace headwise::bench
