// The gradients of attention. flops: the five products, 10 operations per feature and pair that is kept.
#include "bench.h"
#include "headwise/attention.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

enum class Extra { kNone, kBias, kDropout };

struct BackwardCase {
  const char* name;
  int64_t batch, heads, kv_heads, query_len, key_len, head_dim;
  bool causal = false;
  int64_t window = 0;  // keys that a query keeps, its own included; 0: all
  Extra extra = Extra::kNone;
};

// batch x heads x query_len x head_dim
constexpr BackwardCase kCases[] = {
    {"attention_backward/1x8x1024x64", 1, 8, 8, 1024, 1024, 64},
    {"attention_backward/1x8x1024x64/causal", 1, 8, 8, 1024, 1024, 64, true},
    {"attention_backward/4x8x512x64/causal", 4, 8, 8, 512, 512, 64, true},
    {"attention_backward/1x16x1024x128", 1, 16, 16, 1024, 1024, 128},
    {"attention_backward/1x16x1024x128/causal", 1, 16, 16, 1024, 1024, 128, true},
    {"attention_backward/1x1x4096x64", 1, 1, 1, 4096, 4096, 64},
    {"attention_backward/1x1x4096x64/causal", 1, 1, 1, 4096, 4096, 64, true},
    {"attention_backward/1x8x8192x64/causal/window:256", 1, 8, 8, 8192, 8192, 64, true, 256},
    {"attention_backward/4x8x1024x64/kv_heads:2", 4, 8, 2, 1024, 1024, 64},
    {"attention_backward/1x8x1024x64/bias", 1, 8, 8, 1024, 1024, 64, false, 0, Extra::kBias},
    {"attention_backward/1x8x1024x64/dropout", 1, 8, 8, 1024, 1024, 64, false, 0, Extra::kDropout},
};

// Allowed error, relative to kMaxError: errors of the weights and of delta add up.
constexpr double kError = 4;

template <typename T>
class BackwardProblem {
  using A = Accumulator<T>;

 public:
  using Type = T;

  explicit BackwardProblem(const BackwardCase& c)
      : query_({c.batch, c.heads, c.query_len, c.head_dim}),
        key_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        value_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        output_({c.batch, c.heads, c.query_len, c.head_dim}),
        d_output_({c.batch, c.heads, c.query_len, c.head_dim}),
        d_query_({c.batch, c.heads, c.query_len, c.head_dim}),
        d_key_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        d_value_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        lse_({c.batch, c.heads, c.query_len}),
        // Arrays that the case does not have are empty.
        bias_({c.batch, c.extra == Extra::kBias ? c.heads : 0, c.query_len, c.key_len}),
        d_bias_({c.batch, c.extra == Extra::kBias ? c.heads : 0, c.query_len, c.key_len}),
        keep_({c.batch, c.extra == Extra::kDropout ? c.heads : 0, c.query_len, c.key_len}) {
    args_.query = query_.FillNormal(1).read();
    args_.key = key_.FillNormal(2).read();
    args_.value = value_.FillNormal(3).read();
    args_.output = output_.view();
    args_.lse = lse_.view();
    args_.spec.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    if (c.causal) args_.spec.right = 0;
    if (c.window > 0) args_.spec.left = c.window - 1;
    gradients_.d_output = d_output_.FillNormal(4).read();
    gradients_.d_query = d_query_.view();
    gradients_.d_key = d_key_.view();
    gradients_.d_value = d_value_.view();
    if (c.extra == Extra::kBias) {
      args_.spec.bias.push_back(bias_.FillNormal(5).read());
      gradients_.d_bias.push_back(d_bias_.view());
    }
    if (c.extra == Extra::kDropout) {
      std::mt19937_64 random(6);
      for (int64_t i = 0; i < static_cast<int64_t>(keep_.bytes()); ++i) keep_.data()[i] = random() % 10 != 0;
      args_.spec.dropout_keep = keep_.read();
      args_.spec.dropout_scale = 1 / 0.9;
    }
    Attention(args_);
    flops = 10 * static_cast<double>(c.batch * c.heads) * KeptPairs(c) * static_cast<double>(c.head_dim);
    bytes = query_.bytes() + key_.bytes() + value_.bytes() + output_.bytes() + d_output_.bytes() + d_query_.bytes() +
            d_key_.bytes() + d_value_.bytes() + bias_.bytes() + d_bias_.bytes() + keep_.bytes();
  }

  void Run() { AttentionBackward(args_, gradients_); }

  // Of d_query, on a sample: the sums of the other gradients are over all queries.
  double Error() const {
    return 1 / kError * LargestOnSample(args_.query.shape[2], [&](int64_t begin, int64_t size) {
             AttentionArgs<T> some = args_;
             AttentionGradients<T> gradients = gradients_;
             for (auto* view : {&some.query, &gradients.d_output}) *view = Slice(*view, 2, begin, size);
             some.output = Slice(some.output, 2, begin, size), some.lse = Slice(some.lse, 2, begin, size);
             for (Bias<T>& bias : some.spec.bias) {
               std::visit([&](auto& view) { view = Slice(view, 2, begin, size); }, bias);
             }
             if (some.spec.dropout_keep) some.spec.dropout_keep = Slice(some.spec.dropout_keep, 2, begin, size);
             some.spec.offset += begin;
             gradients.d_bias.clear();
             return RelativeError(Slice(d_query_.view(), 2, begin, size),
                                  reference::AttentionBackward(some, gradients).d_query.values);
           });
  }

  double flops, bytes;

 private:
  // Per head.
  static double KeptPairs(const BackwardCase& c) {
    int64_t pairs = 0;
    for (int64_t i = 0; i < c.query_len; ++i) {
      const int64_t end = c.causal ? std::min(i + 1, c.key_len) : c.key_len;
      pairs += end - (c.window > 0 ? std::max<int64_t>(0, i + 1 - c.window) : 0);
    }
    return static_cast<double>(pairs);
  }

  Tensor<T, 4> query_, key_, value_, output_, d_output_, d_query_, d_key_, d_value_;
  Tensor<A, 3> lse_;
  Tensor<A, 4> bias_, d_bias_;
  Tensor<std::uint8_t, 4> keep_;
  AttentionArgs<T> args_;
  AttentionGradients<T> gradients_;
};

}  // namespace

void RegisterAttentionBackward(const Setting& setting) {
  for (const BackwardCase& c : kCases) {
    Register<BackwardProblem<float>>(c.name, c, setting);
    Register<BackwardProblem<double>>(c.name, c, setting);
    Register<BackwardProblem<Float16>>(c.name, c, setting);
    Register<BackwardProblem<BFloat16>>(c.name, c, setting);
  }
}

}  // namespace headwise::bench
