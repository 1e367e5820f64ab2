#include "testing/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "testing/float16.h"

namespace headwise::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Wider where the machine has it: a million additions in double leave an error that tests of float64 would see.
using Sum = long double;

// The lanes of the middle axis, one after the other.
template <typename T, typename Function>
void ForEachLane(View<const T, 3> x, Function function) {
  for (std::int64_t o = 0; o < x.shape[0]; ++o) {
    for (std::int64_t p = 0; p < x.shape[2]; ++p) {
      std::vector<double> lane;
      for (std::int64_t i = 0; i < x.shape[1]; ++i) lane.push_back(ToDouble(*x.at(o, i, p)));
      function(o, p, lane);
    }
  }
}

double Max(const std::vector<double>& values) {
  double max = -kInf;
  for (double value : values) {
    if (std::isnan(value)) return value;
    max = std::max(max, value);
  }
  return max;
}

double SumExp(const std::vector<double>& values, double max) {
  Sum sum = 0;
  for (double value : values) sum += std::exp(value - max);
  return static_cast<double>(sum);
}

template <typename T, typename Formula>
std::vector<double> Normalised(View<const T, 3> x, Formula formula) {
  const std::int64_t n = x.shape[1], inner = x.shape[2];
  std::vector<double> out(x.shape[0] * n * inner);
  ForEachLane(x, [&](std::int64_t o, std::int64_t p, const std::vector<double>& lane) {
    const double max = Max(lane), sum = SumExp(lane, max);
    for (std::int64_t i = 0; i < n; ++i) out[(o * n + i) * inner + p] = formula(lane[i] - max, sum);
  });
  return out;
}

// Calls function(r, normal, divisor) for each row, normalised by `divisor`.
template <typename T, typename Function>
void ForEachNormalRow(bool centered, View<const T, 2> x, double eps, Function function) {
  const auto [rows, n] = x.shape;
  for (std::int64_t r = 0; r < rows; ++r) {
    // From the first element on: differences are exact, and neither moment depends on the origin.
    const double origin = centered && n > 0 ? ToDouble(*x.at(r, 0)) : 0;
    std::vector<Sum> row;
    for (std::int64_t i = 0; i < n; ++i) row.push_back(static_cast<Sum>(ToDouble(*x.at(r, i))) - origin);
    Sum mean = 0, variance = 0;
    for (Sum value : row) mean += centered ? value / static_cast<Sum>(n) : 0;
    for (Sum value : row) variance += (value - mean) * (value - mean) / static_cast<Sum>(n);
    const Sum divisor = std::sqrt(variance + eps);
    for (Sum& value : row) value = (value - mean) / divisor;
    function(r, row, divisor);
  }
}

// Of an optional vector.
template <typename T>
Sum Entry(const T* vector, std::size_t i, Sum absent) {
  return vector ? static_cast<Sum>(ToDouble(vector[i])) : absent;
}

template <typename T, typename Function>
void ForEachElement(View<const T, 2> x, Function function) {
  for (std::int64_t r = 0; r < x.shape[0]; ++r) {
    for (std::int64_t i = 0; i < x.shape[1]; ++i) function(r, i, ToDouble(*x.at(r, i)));
  }
}

// f(x) and f'(x).
std::pair<double, double> ValueAndSlope(Activation f, double x) {
  if (std::isinf(x)) return x > 0 ? std::pair(x, 1.0) : std::pair(-0.0, 0.0);
  constexpr Sum kPi = 3.14159265358979323846264338327950288L;
  const Sum t = x;
  if (f == Activation::kGelu) {
    const Sum share = std::erfc(-t / std::sqrt(Sum{2})) / 2;
    return {static_cast<double>(t * share), static_cast<double>(share + t * std::exp(-t * t / 2) / std::sqrt(2 * kPi))};
  }
  const Sum rate = 2 * std::sqrt(2 / kPi), cubic = f == Activation::kSilu ? 0 : Sum{0.044715L};
  const Sum linear = f == Activation::kSilu ? 1 : rate;
  const Sum y = linear * (t + cubic * t * t * t), share = 1 / (1 + std::exp(-y));
  const Sum density = share / (1 + std::exp(y)) * linear * (1 + 3 * cubic * t * t);
  return {static_cast<double>(t * share), static_cast<double>(share + (density == 0 ? 0 : t * density))};
}

// Of a relative bias, for a distance.
std::int64_t RelativeEntry(std::int64_t distance, std::int64_t entries) {
  const std::int64_t middle = entries / 2;
  return std::clamp(distance, -middle, middle) + middle;
}

// The score of every key for query i of (batch n, head h), -inf for a key that is not kept; and which are kept. On
// demand, the derivatives of the scores kept with respect to scale * query . key.
template <typename T>
void Scores(const AttentionArgs<T>& args, std::int64_t n, std::int64_t h, std::int64_t i, std::vector<double>& scores,
            std::vector<bool>& kept, std::vector<double>* derivatives = nullptr) {
  const std::int64_t head_dim = args.query.shape[3], key_len = args.key.shape[2];
  const std::int64_t kv = h / (args.query.shape[1] / args.key.shape[1]);
  const bool padded = !args.spec.key_lengths.empty();
  const auto entry = static_cast<std::size_t>(n);
  const std::int64_t position = i + args.spec.offset + (padded ? args.spec.offsets[entry] : 0);
  for (std::int64_t j = 0; j < key_len; ++j) {
    kept[j] = (args.spec.left < 0 || j >= position - args.spec.left) &&
              (args.spec.right < 0 || j <= position + args.spec.right) && (!padded || j < args.spec.key_lengths[entry]);
    for (const auto& keep : args.spec.keep) kept[j] = kept[j] && *keep.at(n, h, i, j) != 0;
    const auto for_each_bias = [&](const auto& visit) {
      for (const Bias<T>& bias : args.spec.bias) {
        visit(std::visit([&](const auto& view) { return ToDouble(*view.at(n, h, i, j)); }, bias));
      }
      const auto& relative = args.spec.relative_bias;
      if (relative) visit(static_cast<double>(*relative.at(n, h, i, RelativeEntry(j - position, relative.shape[3]))));
    };
    for_each_bias([&](double bias) { kept[j] = kept[j] && bias != -kInf; });
    scores[j] = -kInf;
    if (!kept[j]) continue;

    Sum product = 0;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      product += ToDouble(*args.query.at(n, h, i, d)) * ToDouble(*args.key.at(n, kv, j, d));
    }
    double score = args.spec.scale * static_cast<double>(product);
    const double tanh = args.spec.softcap != 0 ? std::tanh(score / args.spec.softcap) : 0;
    if (args.spec.softcap != 0) score = args.spec.softcap * tanh;
    if (derivatives) (*derivatives)[j] = 1 - tanh * tanh;
    for_each_bias([&](double bias) {  // a sum of finite numbers stays finite
      constexpr auto kMax = static_cast<double>(std::numeric_limits<Accumulator<T>>::max());
      const double sum = score + bias;
      score = std::isfinite(score) && std::isfinite(bias) ? std::clamp(sum, -kMax, kMax) : sum;
    });
    if (args.spec.alibi_slopes)
      score -= static_cast<double>(args.spec.alibi_slopes[h]) * static_cast<double>(std::abs(position - j));
    scores[j] = score;
    kept[j] = score != -kInf;  // as where a bias is -inf
  }
}

}  // namespace

template <typename T>
std::vector<double> Softmax(View<const T, 3> x) {
  return Normalised(x, [](double shifted, double sum) { return std::exp(shifted) / sum; });
}

template <typename T>
std::vector<double> LogSoftmax(View<const T, 3> x) {
  return Normalised(x, [](double shifted, double sum) { return shifted - std::log(sum); });
}

template <typename T>
std::vector<double> LogSumExp(View<const T, 3> x) {
  std::vector<double> out;
  ForEachLane(x, [&](std::int64_t, std::int64_t, const std::vector<double>& lane) {
    const double max = Max(lane);
    out.push_back(std::isfinite(max) ? max + std::log(SumExp(lane, max)) : max);
  });
  return out;
}

template <typename T>
std::vector<double> LayerNorm(View<const T, 2> x, const T* gamma, const T* beta, double eps) {
  std::vector<double> out;
  ForEachNormalRow(true, x, eps, [&](std::int64_t, const std::vector<Sum>& normal, Sum) {
    for (std::size_t i = 0; i < normal.size(); ++i) {
      out.push_back(static_cast<double>(Entry(gamma, i, 1) * normal[i] + Entry(beta, i, 0)));
    }
  });
  return out;
}

template <typename T>
std::vector<double> RmsNorm(View<const T, 2> x, const T* gamma, double eps) {
  std::vector<double> out;
  ForEachNormalRow(false, x, eps, [&](std::int64_t, const std::vector<Sum>& normal, Sum) {
    for (std::size_t i = 0; i < normal.size(); ++i) {
      out.push_back(static_cast<double>(Entry(gamma, i, 1) * normal[i]));
    }
  });
  return out;
}

template <typename T>
NormGradients NormBackward(bool centered, View<const T, 2> d_out, View<const T, 2> x, const T* gamma, double eps) {
  const auto n = static_cast<std::size_t>(x.shape[1]);
  NormGradients out;
  std::vector<Sum> by_gamma(n), by_beta(n);
  ForEachNormalRow(centered, x, eps, [&](std::int64_t r, const std::vector<Sum>& normal, Sum divisor) {
    Sum mean = 0, along = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const Sum d = ToDouble(*d_out.at(r, i)), g = d * Entry(gamma, i, 1);
      mean += centered ? g / static_cast<Sum>(n) : 0;
      along += g * normal[i] / static_cast<Sum>(n);
      by_gamma[i] += d * normal[i];
      by_beta[i] += d;
    }
    for (std::size_t i = 0; i < n; ++i) {
      const Sum g = ToDouble(*d_out.at(r, i)) * Entry(gamma, i, 1);
      out.x.push_back(static_cast<double>((g - mean - normal[i] * along) / divisor));
    }
  });
  out.gamma.assign(by_gamma.begin(), by_gamma.end());
  out.beta.assign(by_beta.begin(), by_beta.end());
  return out;
}

template <typename T>
std::vector<double> Activate(Activation f, View<const T, 2> x, View<const T, 2> up) {
  std::vector<double> out;
  ForEachElement(x, [&](std::int64_t r, std::int64_t i, double value) {
    out.push_back(ValueAndSlope(f, value).first * (up ? ToDouble(*up.at(r, i)) : 1));
  });
  return out;
}

template <typename T>
ActivationGradients ActivateBackward(Activation f, View<const T, 2> d_out, View<const T, 2> x, View<const T, 2> up) {
  ActivationGradients out;
  ForEachElement(x, [&](std::int64_t r, std::int64_t i, double number) {
    const auto [value, slope] = ValueAndSlope(f, number);
    const double d = ToDouble(*d_out.at(r, i));
    out.x.push_back(d * (up ? ToDouble(*up.at(r, i)) : 1) * slope);
    if (up) out.up.push_back(d * value);
  });
  return out;
}

template <typename T>
std::vector<double> ApplyRope(View<const T, 4> x, View<const Accumulator<T>, 4> cos, View<const Accumulator<T>, 4> sin,
                              bool interleaved) {
  const auto [batch, heads, seq, dim] = x.shape;
  std::vector<double> out(batch * heads * seq * dim);
  double* row = out.data();
  for (std::int64_t n = 0; n < batch; ++n) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t s = 0; s < seq; ++s, row += dim) {
        for (std::int64_t i = 0; i < dim / 2; ++i) {
          const std::int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + dim / 2;
          const double a = ToDouble(*x.at(n, h, s, first)), b = ToDouble(*x.at(n, h, s, second));
          const double c = *cos.at(n, h, s, i), d = *sin.at(n, h, s, i);
          row[first] = a * c - b * d;
          row[second] = a * d + b * c;
        }
      }
    }
  }
  return out;
}

template <typename T>
std::vector<double> AddAlibi(View<const T, 4> scores, const Accumulator<T>* slopes, std::int64_t offset) {
  const auto [batch, heads, query_len, key_len] = scores.shape;
  std::vector<double> out;
  for (std::int64_t n = 0; n < batch; ++n) {
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t i = 0; i < query_len; ++i) {
        for (std::int64_t j = 0; j < key_len; ++j) {
          const auto distance = static_cast<double>(std::abs(i + offset - j));
          out.push_back(ToDouble(*scores.at(n, h, i, j)) - static_cast<double>(slopes[h]) * distance);
        }
      }
    }
  }
  return out;
}

template <typename T>
std::vector<double> Linear(View<const T, 2> x, View<const T, 2> weight, const Accumulator<T>* bias) {
  std::vector<double> columns;  // of weight
  for (std::int64_t n = 0; n < weight.shape[1]; ++n) {
    for (std::int64_t k = 0; k < weight.shape[0]; ++k) columns.push_back(ToDouble(*weight.at(k, n)));
  }
  std::vector<double> out;
  for (std::int64_t r = 0; r < x.shape[0]; ++r) {
    std::vector<double> row;
    for (std::int64_t k = 0; k < x.shape[1]; ++k) row.push_back(ToDouble(*x.at(r, k)));
    const double* column = columns.data();
    for (std::int64_t n = 0; n < weight.shape[1]; ++n, column += weight.shape[0]) {
      Sum sum = 0;
      for (std::size_t k = 0; k < row.size(); ++k) sum += row[k] * column[k];
      out.push_back(static_cast<double>(bias ? sum + bias[n] : sum));
    }
  }
  return out;
}

template <typename T>
AttentionResult Attention(const AttentionArgs<T>& args) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::int64_t key_len = args.key.shape[2], value_dim = args.value.shape[3];
  AttentionResult result;
  std::vector<double> scores(key_len);
  std::vector<Sum> values(value_dim);
  std::vector<bool> kept(key_len);
  for (std::int64_t n = 0; n < batch; ++n) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t kv = h / (heads / args.key.shape[1]);
      const double sink = args.spec.sinks ? static_cast<double>(args.spec.sinks[h]) : -kInf;
      for (std::int64_t i = 0; i < query_len; ++i) {
        Scores(args, n, h, i, scores, kept);
        const double max = std::max(sink, Max(scores));
        const bool empty = std::find(kept.begin(), kept.end(), true) == kept.end();
        const double sum = empty ? 0 : SumExp(scores, max) + std::exp(sink - max);
        result.lse.push_back(empty ? sink : max + std::log(sum));
        std::fill(values.begin(), values.end(), Sum{0});
        for (std::int64_t j = 0; j < key_len; ++j) {
          const double weight = kept[j] ? std::exp(scores[j] - max) / sum : 0.0 * sum;  // NaN where the row is
          result.weights.push_back(weight);
          if (!kept[j] || (args.spec.dropout_keep && *args.spec.dropout_keep.at(n, h, i, j) == 0)) continue;
          const double scale = args.spec.dropout_keep ? args.spec.dropout_scale : 1.0;
          for (std::int64_t d = 0; d < value_dim; ++d)
            values[d] += scale * weight * ToDouble(*args.value.at(n, kv, j, d));
        }
        result.output.insert(result.output.end(), values.begin(), values.end());
      }
    }
  }
  return result;
}

template <typename T>
AttentionGradientsResult AttentionBackward(const AttentionArgs<T>& args, const AttentionGradients<T>& gradients) {
  const auto [batch, heads, query_len, head_dim] = args.query.shape;
  const std::int64_t kv_heads = args.key.shape[1], key_len = args.key.shape[2], value_dim = args.value.shape[3];
  const AttentionSpec<T>& spec = args.spec;
  const auto zeros = [](auto... sizes) {
    const std::vector<double> all(static_cast<std::size_t>((sizes * ...)));
    return Gradient{all, all};
  };
  AttentionGradientsResult result{zeros(batch, heads, query_len, head_dim),
                                  zeros(batch, kv_heads, key_len, head_dim),
                                  zeros(batch, kv_heads, key_len, value_dim),
                                  {},
                                  zeros(heads),
                                  zeros(heads),
                                  {}};
  const auto& d_relative = gradients.d_relative_bias;
  if (d_relative)
    result.d_relative_bias = zeros(d_relative.shape[0], d_relative.shape[1], d_relative.shape[2], d_relative.shape[3]);
  for (const auto& d : gradients.d_bias) {
    result.d_bias.push_back(d ? zeros(d.shape[0], d.shape[1], d.shape[2], d.shape[3]) : Gradient());
  }
  // Without checks of indices, which take most of the time of the tests.
  const auto add = [](Gradient& gradient, std::int64_t at, double term, double size) {
    gradient.values.data()[at] += term;
    gradient.sizes.data()[at] += std::abs(size);
  };
  std::vector<double> scores(key_len), derivatives(key_len);
  std::vector<bool> kept(key_len);
  for (std::int64_t n = 0; n < batch; ++n) {
    const std::int64_t first = spec.offset + (spec.offsets.empty() ? 0 : spec.offsets[static_cast<std::size_t>(n)]);
    for (std::int64_t h = 0; h < heads; ++h) {
      const std::int64_t kv = h / (heads / kv_heads);
      for (std::int64_t i = 0; i < query_len; ++i) {
        const double lse = *args.lse.at(n, h, i);
        if (lse == -kInf) continue;
        Scores(args, n, h, i, scores, kept, &derivatives);
        double delta = gradients.d_lse ? -static_cast<double>(*gradients.d_lse.at(n, h, i)) : 0;
        double delta_size = std::abs(delta);
        for (std::int64_t d = 0; d < value_dim; ++d) {
          const double output = ToDouble(*args.output.at(n, h, i, d));
          const double term = output == 0 ? 0 : ToDouble(*gradients.d_output.at(n, h, i, d)) * output;
          delta += term, delta_size += std::abs(term);
        }
        if (spec.sinks && spec.sinks[h] != -kInf) {
          const double weight = std::exp(static_cast<double>(spec.sinks[h]) - lse);
          add(result.d_sinks, h, -weight * delta, weight * delta_size);
        }
        const std::int64_t row = (n * heads + h) * query_len + i;
        for (std::int64_t j = 0; j < key_len; ++j) {
          if (!kept[j]) continue;
          const double p = std::exp(scores[j] - lse);
          const bool dropped = spec.dropout_keep && *spec.dropout_keep.at(n, h, i, j) == 0;
          const double dropout = dropped ? 0 : spec.dropout_keep ? spec.dropout_scale : 1;
          double dp = gradients.d_weights ? ToDouble(*gradients.d_weights.at(n, h, i, j)) : 0, dp_size = std::abs(dp);
          const std::int64_t key = (n * kv_heads + kv) * key_len + j;
          for (std::int64_t d = 0; d < value_dim && !dropped; ++d) {
            const double d_output = ToDouble(*gradients.d_output.at(n, h, i, d));
            const double term = dropout * d_output * ToDouble(*args.value.at(n, kv, j, d));
            dp += term, dp_size += std::abs(term);
            add(result.d_value, key * value_dim + d, dropout * p * d_output, dropout * p * d_output);
          }
          const double ds = p * (dp - delta), size = p * (dp_size + delta_size);
          const auto index = [](std::int64_t axis, std::int64_t at) { return axis == 1 ? 0 : at; };
          if (d_relative) {
            const auto [s0, s1, s2, s3] = d_relative.shape;
            add(result.d_relative_bias,
                ((index(s0, n) * s1 + index(s1, h)) * s2 + index(s2, i)) * s3 + RelativeEntry(j - first - i, s3), ds,
                size);
          }
          for (std::size_t b = 0; b < gradients.d_bias.size(); ++b) {
            if (!gradients.d_bias[b]) continue;
            const auto [s0, s1, s2, s3] = gradients.d_bias[b].shape;
            add(result.d_bias[b], ((index(s0, n) * s1 + index(s1, h)) * s2 + index(s2, i)) * s3 + index(s3, j), ds,
                size);
          }
          const auto distance = static_cast<double>(std::abs(first + i - j));
          add(result.d_alibi_slopes, h, -ds * distance, size * distance);
          const double factor = spec.scale * derivatives[j];
          for (std::int64_t d = 0; d < head_dim; ++d) {
            const double k = ToDouble(*args.key.at(n, kv, j, d)), q = ToDouble(*args.query.at(n, h, i, d));
            add(result.d_query, row * head_dim + d, factor * ds * k, spec.scale * size * k);
            add(result.d_key, key * head_dim + d, factor * ds * q, spec.scale * size * q);
          }
        }
      }
    }
  }
  return result;
}

#define HEADWISE_REFERENCE(T)                                                                                      \
  template std::vector<double> Softmax(View<const T, 3>);                                                          \
  template std::vector<double> LogSoftmax(View<const T, 3>);                                                       \
  template std::vector<double> LogSumExp(View<const T, 3>);                                                        \
  template std::vector<double> LayerNorm(View<const T, 2>, const T*, const T*, double);                            \
  template std::vector<double> ApplyRope(View<const T, 4>, View<const Accumulator<T>, 4>,                          \
                                         View<const Accumulator<T>, 4>, bool);                                     \
  template std::vector<double> AddAlibi(View<const T, 4>, const Accumulator<T>*, std::int64_t);                    \
  template std::vector<double> Linear(View<const T, 2>, View<const T, 2>, const Accumulator<T>*);                  \
  template AttentionResult Attention(const AttentionArgs<T>&);                                                     \
  template std::vector<double> RmsNorm(View<const T, 2>, const T*, double);                                        \
  template NormGradients NormBackward(bool, View<const T, 2>, View<const T, 2>, const T*, double);                 \
  template std::vector<double> Activate(Activation, View<const T, 2>, View<const T, 2>);                           \
  template ActivationGradients ActivateBackward(Activation, View<const T, 2>, View<const T, 2>, View<const T, 2>); \
  template AttentionGradientsResult AttentionBackward(const AttentionArgs<T>&, const AttentionGradients<T>&)

HEADWISE_REFERENCE(Float16);
HEADWISE_REFERENCE(BFloat16);
HEADWISE_REFERENCE(float);
HEADWISE_REFERENCE(double);

}  // namespace headwise::reference
