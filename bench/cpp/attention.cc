#include "headwise/attention.h"

#include "bench.h"
#include "testing/reference.h"

namespace headwise::bench {
namespace {

enum class Extra { kNone, kMask, kBias, kPadding, kAlibi, kWeights };

struct AttentionCase {
  const char* name;
  int64_t batch, heads, kv_heads, query_len, key_len, head_dim;
  bool causal = false;
  int64_t window = 0;  // keys that a query keeps, its own included; 0: all
  Extra extra = Extra::kNone;
  Precision precision = Precision::kHighest;
};

// batch x heads x query_len x head_dim
constexpr AttentionCase kCases[] = {
    {"attention/1x1x16x16", 1, 1, 1, 16, 16, 16},
    {"attention/8x4x64x32", 8, 4, 4, 64, 64, 32},
    {"attention/32x8x50x64", 32, 8, 8, 50, 50, 64},
    {"attention/2x8x513x80", 2, 8, 8, 513, 513, 80},
    {"attention/1x8x1024x64", 1, 8, 8, 1024, 1024, 64},
    {"attention/1x8x1024x64/causal", 1, 8, 8, 1024, 1024, 64, true},
    {"attention/4x8x512x64/causal", 4, 8, 8, 512, 512, 64, true},
    {"attention/1x8x4096x64", 1, 8, 8, 4096, 4096, 64},
    {"attention/1x8x4096x64/causal", 1, 8, 8, 4096, 4096, 64, true},
    {"attention/1x8x2048x128", 1, 8, 8, 2048, 2048, 128},
    {"attention/1x8x2048x128/causal", 1, 8, 8, 2048, 2048, 128, true},
    {"attention/1x8x8192x64/causal/window:256", 1, 8, 8, 8192, 8192, 64, true, 256},
    {"attention/4x8x1024x64/kv_heads:2", 4, 8, 2, 1024, 1024, 64},
    {"attention/4x8x1024x64/mask", 4, 8, 8, 1024, 1024, 64, false, 0, Extra::kMask},
    {"attention/4x8x1024x64/bias", 4, 8, 8, 1024, 1024, 64, false, 0, Extra::kBias},
    {"attention/4x8x1024x64/key_padding", 4, 8, 8, 1024, 1024, 64, false, 0, Extra::kPadding},
    {"attention/4x8x1024x64/alibi", 4, 8, 8, 1024, 1024, 64, false, 0, Extra::kAlibi},
    {"attention/1x8x1024x64/weights", 1, 8, 8, 1024, 1024, 64, false, 0, Extra::kWeights},
    {"attention/1x32x1x128/keys:4096", 1, 32, 32, 1, 4096, 128},
    {"attention/1x32x1x128/keys:4096/kv_heads:8", 1, 32, 8, 1, 4096, 128},
    {"attention/1x32x1x128/keys:32768/kv_heads:8", 1, 32, 8, 1, 32768, 128},
};

constexpr const char* kPrecisionName[] = {"highest", "high", "medium"};

// Allowed error, relative to FMA: at each precision, and for 16-bit types, whose weights the bf16 backends round.
constexpr double kPrecisionError[] = {1, 10, 1000};
constexpr double k16BitError = 2;

template <typename T>
class AttentionProblem {
 public:
  using Type = T;

  explicit AttentionProblem(const AttentionCase& c)
      : query_({c.batch, c.heads, c.query_len, c.head_dim}),
        key_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        value_({c.batch, c.kv_heads, c.key_len, c.head_dim}),
        output_({c.batch, c.heads, c.query_len, c.head_dim}),
        // Arrays that the case does not have are empty.
        weights_({c.extra == Extra::kWeights ? c.batch : 0, c.heads, c.query_len, c.key_len}),
        bias_({c.extra == Extra::kBias ? c.heads : 0, c.query_len, c.key_len}),
        mask_({c.extra == Extra::kMask ? c.query_len : 0, c.key_len}),
        padding_({c.extra == Extra::kPadding ? c.batch : 0, c.key_len}),
        slopes_({c.heads}) {
    args_.query = query_.FillNormal(1).read();
    args_.key = key_.FillNormal(2).read();
    args_.value = value_.FillNormal(3).read();
    args_.output = output_.view();
    args_.spec.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    args_.spec.precision = c.precision;
    if (c.causal) args_.spec.right = 0;
    if (c.window > 0) args_.spec.left = c.window - 1;
    AddExtra(c);
    flops = 4 * static_cast<double>(c.heads) * KeptPairs(c) * static_cast<double>(c.head_dim);
    bytes = query_.bytes() + key_.bytes() + value_.bytes() + output_.bytes() + weights_.bytes() + bias_.bytes() +
            mask_.bytes() + padding_.bytes();
  }

  void Run() { Attention(args_); }

  double Error() const {
    const double allowed = kIs16Bit<T> ? k16BitError : kPrecisionError[static_cast<int>(args_.spec.precision)];
    return 1 / allowed * LargestOnSample(args_.query.shape[2], [&](int64_t begin, int64_t size) {
             AttentionArgs<T> some = args_;
             some.query = Slice(some.query, 2, begin, size);
             for (auto& keep : some.spec.keep) keep = Slice(keep, 2, begin, size);
             for (Bias<T>& bias : some.spec.bias) {
               std::visit([&](auto& view) { view = Slice(view, 2, begin, size); }, bias);
             }
             some.spec.offset += begin;
             const reference::AttentionResult expected = reference::Attention(some);
             const double error = RelativeError(Slice(output_.view(), 2, begin, size), expected.output);
             if (!args_.weights) return error;
             return std::max(error, RelativeError(Slice(weights_.view(), 2, begin, size), expected.weights));
           });
  }

  double flops, bytes;

 private:
  // Key padding: batch entry n keeps the first key_len / 2^n keys.
  static int64_t Length(const AttentionCase& c, int64_t n) {
    return c.extra == Extra::kPadding ? c.key_len >> n : c.key_len;
  }

  // Pairs of a query and a key that causality, window and padding keep, per head.
  static double KeptPairs(const AttentionCase& c) {
    int64_t pairs = 0;
    for (int64_t n = 0; n < c.batch; ++n) {
      for (int64_t i = 0; i < c.query_len; ++i) {
        const int64_t end = c.causal ? std::min(i + 1, Length(c, n)) : Length(c, n);
        const int64_t begin = c.window > 0 ? std::max<int64_t>(0, i + 1 - c.window) : 0;
        pairs += std::max<int64_t>(0, end - begin);
      }
    }
    return static_cast<double>(pairs);
  }

  void AddExtra(const AttentionCase& c) {
    const std::array<int64_t, 4> scores{c.batch, c.heads, c.query_len, c.key_len};
    switch (c.extra) {
      case Extra::kNone:
        break;
      case Extra::kMask: {  // keeps three of four
        std::mt19937_64 random(4);
        for (int64_t i = 0; i < c.query_len * c.key_len; ++i) mask_.data()[i] = random() % 4 != 0;
        args_.spec.keep.push_back({mask_.data(), scores, {0, 0, c.key_len, 1}});
        break;
      }
      case Extra::kBias:
        args_.spec.bias.push_back(View<const Accumulator<T>, 4>{
            bias_.FillNormal(4).data(), scores, {0, c.query_len * c.key_len, c.key_len, 1}});
        break;
      case Extra::kPadding:
        for (int64_t n = 0; n < c.batch; ++n) std::fill_n(padding_.view().at(n), Length(c, n), std::uint8_t{1});
        args_.spec.keep.push_back({padding_.data(), scores, {c.key_len, 0, 0, 1}});
        break;
      case Extra::kAlibi:
        for (int64_t h = 0; h < c.heads; ++h)
          slopes_.data()[h] = static_cast<Accumulator<T>>(std::pow(0.5, static_cast<double>(h + 1)));
        args_.spec.alibi_slopes = slopes_.data();
        break;
      case Extra::kWeights:
        args_.weights = weights_.view();
        break;
    }
  }

  Tensor<T, 4> query_, key_, value_, output_;
  Tensor<T, 4> weights_;
  Tensor<Accumulator<T>, 3> bias_;
  Tensor<std::uint8_t, 2> mask_, padding_;
  Tensor<Accumulator<T>, 1> slopes_;
  AttentionArgs<T> args_;
};

template <typename T>
void RegisterCase(const AttentionCase& c, const Setting& setting) {
  Register<AttentionProblem<T>>(std::string(c.name) + "/" + kPrecisionName[static_cast<int>(c.precision)], c, setting);
}

}  // namespace

// Precisions below "highest" change only the bf16 targets.
void RegisterAttention(const Setting& setting) {
  for (AttentionCase c : kCases) {
    RegisterCase<float>(c, setting);
    RegisterCase<double>(c, setting);
    RegisterCase<Float16>(c, setting);
    RegisterCase<BFloat16>(c, setting);
    if (setting.target != "avx512_amx" && setting.target != "avx512_bf16") continue;
    for (const Precision precision : {Precision::kHigh, Precision::kMedium}) {
      c.precision = precision;
      RegisterCase<float>(c, setting);
    }
  }
}

}  // namespace headwise::bench
