// Shared by the tests of linear: the fixture, and a random problem with its checks.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "headwise/linear.h"
#include "support.h"
#include "testing/reference.h"

namespace headwise::testing {

class LinearTest : public OnTarget {};

inline constexpr std::array<std::int64_t, 2> kRowsFirst{0, 1};
inline constexpr std::array<std::int64_t, 2> kColumnsFirst{1, 0};  // a weight stored (out, in), used transposed

// Rows from which targets with AMX use it; fewer rows use FMA.
template <typename T>
constexpr std::int64_t kMinBf16Rows = std::is_same_v<T, BFloat16> ? 9 : 32;
inline bool HasBf16(Precision precision = Precision::kHighest) { return HasBf16Products<float>(precision); }

template <typename T>
struct Case {
  Tensor<T, 2> x, weight;
  Tensor<Accumulator<T>, 1> bias;
  Guard guard;

  Case(std::int64_t rows, std::int64_t depth, std::int64_t columns, std::array<std::int64_t, 2> order = kRowsFirst,
       Guard guard = Guard::kAfter, std::int64_t pad = 3)
      : x({rows, depth}, guard, kRowsFirst, pad),
        weight({depth, columns}, guard, order, pad),
        bias({columns}, guard),
        guard(guard) {
    Random random(static_cast<std::uint64_t>(rows * 10'000 + depth * 100 + columns));
    FillNormal(x, random);
    FillNormal(weight, random);
    FillNormal(bias, random);
  }

  std::vector<T> Run(bool with_bias = true, Precision precision = Precision::kHighest) const {
    const Tensor<T, 2> out({x.view().shape[0], weight.view().shape[1]}, guard, kRowsFirst, 3);
    const ReadOnly inputs(x, weight, bias);
    Linear(x.read(), weight.read(), with_bias ? bias.data() : nullptr, out.view(), precision);
    EXPECT_TRUE(out.PaddingIntact());
    return out.Values();
  }

  void Check(bool with_bias = true) const {
    const std::int64_t depth = x.view().shape[1];
    const auto expected = reference::Linear(x.read(), weight.read(), with_bias ? bias.data() : nullptr);
    EXPECT_TRUE(Near(Run(with_bias), expected, (8 + 2 * static_cast<double>(depth)) * kEpsilon<T>, 4 * kEpsilon<T>))
        << x.view().shape[0] << " x " << depth << " x " << weight.view().shape[1];
  }
};

}  // namespace headwise::testing
