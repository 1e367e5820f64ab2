#include "headwise/alibi.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

struct AlibiCase {
  const char* name;
  int64_t batch, heads, query_len, key_len;
};

constexpr AlibiCase kCases[] = {
    {"add_alibi/1x8x64x64", 1, 8, 64, 64},
    {"add_alibi/4x8x1024x1024", 4, 8, 1024, 1024},
};

template <typename T>
class AlibiProblem {
 public:
  using Type = T;

  explicit AlibiProblem(const AlibiCase& c)
      : scores_({c.batch, c.heads, c.query_len, c.key_len}),
        out_({c.batch, c.heads, c.query_len, c.key_len}),
        slopes_({c.heads}) {
    scores_.FillNormal(1);
    for (int64_t h = 0; h < c.heads; ++h)
      slopes_.data()[h] = static_cast<Accumulator<T>>(std::pow(0.5, static_cast<double>(h + 1)));
    bytes = scores_.bytes() + out_.bytes();
  }

  void Run() { AddAlibi(scores_.read(), slopes_.data(), 0, out_.view()); }

  double Error() const {
    return LargestOnSample(scores_.read().shape[2], [&](int64_t begin, int64_t size) {
      // Query 0 of the slice is query `begin` of the whole.
      return RelativeError(Slice(out_.view(), 2, begin, size),
                           reference::AddAlibi(Slice(scores_.read(), 2, begin, size), slopes_.data(), begin));
    });
  }

  double flops = 0, bytes;

 private:
  Tensor<T, 4> scores_, out_;
  Tensor<Accumulator<T>, 1> slopes_;
};

}  // namespace

void RegisterAlibi(const Setting& setting) {
  for (const AlibiCase& c : kCases) {
    Register<AlibiProblem<Float16>>(c.name, c, setting);
    Register<AlibiProblem<BFloat16>>(c.name, c, setting);
    Register<AlibiProblem<float>>(c.name, c, setting);
  }
}

}  // namespace headwise::bench
