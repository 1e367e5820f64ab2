#include "headwise/linear.h"

#include <memory>

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct LinearCase {
  int64_t rows, inner, columns;
  Precision precision = Precision::kHighest;
  bool packed = false;
};

constexpr LinearCase kCases[] = {
    {1, 4096, 4096}, {16, 512, 512}, {1600, 512, 512}, {2048, 512, 2048}, {2048, 2048, 2048}};

constexpr const char* kPrecisionName[] = {"highest", "high", "medium"};
// Allowed error of a level relative to "highest".
constexpr double kPrecisionError[] = {1, 10, 1000};

template <typename T>
class LinearProblem {
 public:
  using Type = T;

  explicit LinearProblem(const LinearCase& c)
      : case_(c), x_({c.rows, c.inner}), weight_({c.inner, c.columns}), bias_({c.columns}), out_({c.rows, c.columns}) {
    x_.FillNormal(1);
    weight_.FillNormal(2);
    bias_.FillNormal(3);
    if (c.packed) packed_ = std::make_unique<PackedLinear<T>>(weight_.read(), bias_.data(), c.precision);
    flops = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.inner) * static_cast<double>(c.columns);
    bytes = x_.bytes() + weight_.bytes() + bias_.bytes() + out_.bytes();
  }

  void Run() {
    if (packed_) {
      (*packed_)(x_.read(), out_.view());
    } else {
      Linear(x_.read(), weight_.read(), bias_.data(), out_.view(), case_.precision);
    }
  }

  double Error() const {
    return 1 / kPrecisionError[static_cast<int>(case_.precision)] *
           LargestOnSample(x_.read().shape[0], [&](int64_t begin, int64_t size) {
             return RelativeError(Slice(out_.view(), 0, begin, size),
                                  reference::Linear<T>(Slice(x_.read(), 0, begin, size), weight_.read(), bias_.data()));
           });
  }

  double flops, bytes;

 private:
  const LinearCase case_;
  Tensor<T, 2> x_, weight_;
  Tensor<Accumulator<T>, 1> bias_;
  Tensor<T, 2> out_;
  std::unique_ptr<PackedLinear<T>> packed_;
};

template <typename T>
void RegisterCase(const LinearCase& c, const Setting& setting) {
  const std::string name = "linear/" + Join({c.rows, c.inner, c.columns}) + "/" +
                           kPrecisionName[static_cast<int>(c.precision)] + (c.packed ? "/packed" : "");
  Register<LinearProblem<T>>(name, c, setting);
}

}  // namespace

// Levels below "highest" differ on targets with bf16 products only.
void RegisterLinear(const Setting& setting) {
  for (LinearCase c : kCases) {
    for (const bool packed : {false, true}) {
      c.precision = Precision::kHighest;
      c.packed = packed;
      RegisterCase<float>(c, setting);
      RegisterCase<Float16>(c, setting);
      RegisterCase<BFloat16>(c, setting);
    }
    for (const Precision precision : {Precision::kHigh, Precision::kMedium}) {
      c.precision = precision;
      RegisterCase<float>(c, setting);
    }
  }
}

}  // namespace headwise::bench
