#include "headwise/linear_attention.h"

#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {
namespace {

class LinearAttentionTest : public OnTarget {};

struct Options {
  std::int64_t tokens, features, value_dim;
  bool decay = false, by_feature = false, beta = false, elu = false, state = true, is_causal = true;
  std::int64_t chunk = 64;
};

// One batch entry, two key heads with two query heads each.
template <typename T>
struct Case {
  using A = Accumulator<T>;
  Options o;
  Tensor<T, 4> query, key, value, output;
  Tensor<A, 4> decay, state, new_state;
  Tensor<A, 3> beta;

  explicit Case(const Options& options, Guard guard = Guard::kAfter)
      : o(options),
        query({1, 4, o.tokens, o.features}, guard),
        key({1, 2, o.tokens, o.features}, guard),
        value({1, 2, o.tokens, o.value_dim}, guard),
        output({1, 4, o.tokens, o.value_dim}, guard),
        decay({1, 2, o.tokens, o.by_feature ? o.features : 1}, guard),
        state({1, 2, o.features, o.value_dim + (o.elu ? 1 : 0)}, guard),
        new_state(state.view().shape, guard),
        beta({1, 2, o.tokens}, guard) {
    Random random(static_cast<std::uint64_t>(o.tokens * 1000 + o.features));
    FillNormal(query, random);
    FillNormal(key, random, 1 / std::sqrt(static_cast<double>(o.features)));
    FillNormal(value, random);
    FillNormal(state, random);
    std::uniform_real_distribution<double> uniform(0.05, 1);
    decay.ForEach([&](A& x) { x = static_cast<A>(uniform(random)); });
    beta.ForEach([&](A& x) { x = static_cast<A>(0.5 * uniform(random)); });
  }

  LinearAttentionArgs<T> Args() const {
    LinearAttentionArgs<T> args;
    args.query = query.read();
    args.key = key.read();
    args.value = value.read();
    if (o.decay) args.decay = decay.read();
    if (o.beta) args.beta = beta.read();
    if (o.state) args.state = state.read();
    args.output = output.view();
    args.new_state = new_state.view();
    args.elu = args.normalize = o.elu;
    args.is_causal = o.is_causal;
    args.scale = 0.5;
    args.chunk = o.chunk;
    return args;
  }

  double Feature(T x) const {
    const double wide = reference::ToDouble(x);
    if (!o.elu) return wide;
    return wide > 0 ? wide + 1 : std::exp(wide);
  }

  // The recurrence in double precision.
  void Check() const {
    LinearAttention(Args());
    const std::int64_t columns = state.view().shape[3];
    std::vector<double> outputs, states;
    for (std::int64_t h = 0; h < 4; ++h) {
      const std::int64_t kv = h / 2;
      std::vector<double> s(static_cast<std::size_t>(o.features * columns), 0);
      const auto at = [&](std::int64_t f, std::int64_t c) -> double& {
        return s[static_cast<std::size_t>(f * columns + c)];
      };
      const auto read = [&](std::int64_t t) {
        std::vector<double> row(static_cast<std::size_t>(columns), 0);
        for (std::int64_t f = 0; f < o.features; ++f) {
          const double q = Feature(*query.view().at(0, h, t, f));
          for (std::int64_t c = 0; c < columns; ++c) row[static_cast<std::size_t>(c)] += q * at(f, c);
        }
        for (std::int64_t c = 0; c < o.value_dim; ++c) {
          const double sum = row[static_cast<std::size_t>(c)];
          outputs.push_back(o.elu ? sum / row.back() : 0.5 * sum);
        }
      };
      for (std::int64_t f = 0; f < o.features && o.state; ++f) {
        for (std::int64_t c = 0; c < columns; ++c) at(f, c) = static_cast<double>(*state.view().at(0, kv, f, c));
      }
      for (std::int64_t t = 0; t < o.tokens; ++t) {
        for (std::int64_t f = 0; f < o.features && o.decay; ++f) {
          const auto factor = static_cast<double>(*decay.view().at(0, kv, t, o.by_feature ? f : 0));
          for (std::int64_t c = 0; c < columns; ++c) at(f, c) *= factor;
        }
        for (std::int64_t c = 0; c < columns; ++c) {
          double u = c < o.value_dim ? reference::ToDouble(*value.view().at(0, kv, t, c)) : 1;
          if (o.beta) {
            for (std::int64_t f = 0; f < o.features; ++f) u -= Feature(*key.view().at(0, kv, t, f)) * at(f, c);
            u *= static_cast<double>(*beta.view().at(0, kv, t));
          }
          for (std::int64_t f = 0; f < o.features; ++f) at(f, c) += Feature(*key.view().at(0, kv, t, f)) * u;
        }
        if (o.is_causal) read(t);
      }
      for (std::int64_t t = 0; t < o.tokens && !o.is_causal; ++t) read(t);
      if (h % 2 == 0) states.insert(states.end(), s.begin(), s.end());
    }
    const double bound = 300 * kEpsilon<A>, rounding = kIs16Bit<T> ? kEpsilon<T> : 0;
    EXPECT_TRUE(Near(output.Values(), outputs, bound + rounding, bound + rounding)) << Name();
    EXPECT_TRUE(Near(new_state.Values(), states, bound, bound)) << Name();
  }

  std::string Name() const {
    std::ostringstream name;
    name << "tokens " << o.tokens << " features " << o.features << " value_dim " << o.value_dim << " decay " << o.decay
         << o.by_feature << " beta " << o.beta << " elu " << o.elu << " causal " << o.is_causal;
    return name.str();
  }
};

template <typename T>
void CheckSizes() {
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    for (const std::int64_t tokens : {1, 3, 4, 13, 65}) {
      for (const std::int64_t features : {1, 7, 16, 33}) {
        for (const std::int64_t value_dim : {1, 15, 33}) {
          for (int mode = 0; mode < 6; ++mode) {
            Options o{tokens, features, value_dim};
            o.decay = mode % 3 != 0;
            o.by_feature = mode % 3 == 2;
            o.beta = mode >= 3;
            o.state = (tokens + mode) % 2 == 0;
            o.chunk = features == 7 ? 5 : 64;
            Case<T>(o, guard).Check();
          }
          Options o{tokens, features, value_dim};
          o.elu = true;
          Case<T>(o, guard).Check();
          o.is_causal = false;
          Case<T>(o, guard).Check();
        }
      }
    }
  }
}
TEST_P(LinearAttentionTest, EverySizeNothingOutOfBounds) {
  CheckSizes<float>();
  CheckSizes<double>();
}
TEST_P(LinearAttentionTest, SixteenBitTypes) {
  CheckSizes<Float16>();
  CheckSizes<BFloat16>();
}

TEST_P(LinearAttentionTest, SameBitsForAnyNumberOfThreads) {
  Options o{300, 40, 70};
  o.decay = o.beta = true;
  const Case<float> test(o);
  SetNumThreads(1);
  LinearAttention(test.Args());
  const auto output = test.output.Values(), state = test.new_state.Values();
  for (const int threads : {2, 4}) {
    SetNumThreads(threads);
    LinearAttention(test.Args());
    EXPECT_TRUE(Identical(test.output.Values(), output));
    EXPECT_TRUE(Identical(test.new_state.Values(), state));
  }
}

TEST_P(LinearAttentionTest, NaNReachesNoEarlierToken) {
  for (int mode = 0; mode < 3; ++mode) {
    Options o{70, 20, 20};
    o.decay = mode > 0;
    o.beta = mode > 1;
    const Case<float> test(o);
    LinearAttention(test.Args());
    const auto before = test.output.Values();
    *test.value.view().at(0, 0, 37, 3) = static_cast<float>(kNaN);
    LinearAttention(test.Args());
    std::size_t i = 0;
    for (const float x : test.output.Values()) {
      const auto head = static_cast<std::int64_t>(i) / (70 * 20), t = static_cast<std::int64_t>(i) / 20 % 70;
      const bool reached = head < 2 && t >= 37 && i % 20 == 3;
      EXPECT_EQ(std::isnan(x), reached);
      if (!reached) {
        EXPECT_NEAR(x, before[i], 1e-4);
      }
      ++i;
    }
  }
}

HEADWISE_ON_EVERY_TARGET(LinearAttentionTest);

}  // namespace
}  // namespace headwise::testing
