// Every operation in every type as a function without arguments, for tests of calls that threads and interruptions
// disturb.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention_backward_case.h"
#include "attention_case.h"
#include "headwise/activation.h"
#include "headwise/alibi.h"
#include "headwise/attention.h"
#include "headwise/attention_statistics.h"
#include "headwise/layer_norm.h"
#include "headwise/linear.h"
#include "headwise/rope.h"
#include "headwise/softmax.h"
#include "tensor.h"

namespace headwise::testing {

using Bytes = std::vector<char>;

template <typename T, int kRank>
void Append(const Tensor<T, kRank>& tensor, Bytes& bytes) {
  const std::vector<T> values = tensor.Values();
  const char* const begin = reinterpret_cast<const char*>(values.data());
  bytes.insert(bytes.end(), begin, begin + values.size() * sizeof(T));
}

struct Work {
  std::string name;
  std::function<Bytes()> run;  // writes its own memory, reads inputs that all callers share
};

template <typename T, int kRank>
std::shared_ptr<Tensor<T, kRank>> Normal(std::array<std::int64_t, kRank> shape) {
  auto tensor = std::make_shared<Tensor<T, kRank>>(shape);
  Random random(static_cast<std::uint64_t>(tensor->Size()));
  FillNormal(*tensor, random);
  return tensor;
}

template <typename T>
using Normalizer = void (*)(View<const T, 3>, View<T, 3>);

template <typename T>
void AddSoftmax(std::vector<Work>& works) {
  // Rows, a few long rows that are split into parts, and columns.
  for (const std::array<std::int64_t, 3> shape :
       {std::array<std::int64_t, 3>{101, 1000, 1}, {2, 70'000, 1}, {4, 20, 1500}}) {
    const auto x = Normal<T, 3>(shape);
    for (const Normalizer<T> normalizer : {Normalizer<T>(&Softmax), Normalizer<T>(&LogSoftmax)}) {
      works.push_back({"softmax", [x, shape, normalizer] {
                         const Tensor<T, 3> out(shape);
                         normalizer(x->read(), out.view());
                         Bytes bytes;
                         Append(out, bytes);
                         return bytes;
                       }});
    }
    works.push_back({"log-sum-exp", [x, shape] {
                       const Tensor<T, 2> out({shape[0], shape[2]});
                       LogSumExp(x->read(), out.view());
                       Bytes bytes;
                       Append(out, bytes);
                       return bytes;
                     }});
  }
}

template <typename T>
void AddRowOperations(std::vector<Work>& works) {
  using A = Accumulator<T>;
  const auto scores = Normal<T, 4>({1, 4, 260, 1000});
  const auto numbers = Normal<A, 1>({1000});
  works.push_back({"alibi", [=] {
                     const Tensor<T, 4> out(scores->view().shape);
                     AddAlibi(scores->read(), numbers->data(), 7, out.view());
                     Bytes bytes;
                     Append(out, bytes);
                     return bytes;
                   }});
  const auto rows = Normal<T, 2>({301, 1000});
  const auto factors = Normal<T, 1>({1000});
  works.push_back({"layer norm", [=] {
                     const Tensor<T, 2> out(rows->view().shape);
                     LayerNorm(rows->read(), factors->data(), factors->data(), 1e-5, out.view());
                     Bytes bytes;
                     Append(out, bytes);
                     return bytes;
                   }});
  works.push_back({"layer norm backward", [=] {
                     const Tensor<T, 2> out(rows->view().shape);
                     const Tensor<A, 1> d_gamma({1000}), d_beta({1000});
                     LayerNormBackward(rows->read(), rows->read(), factors->data(), 1e-5, out.view(), d_gamma.data(),
                                       d_beta.data());
                     Bytes bytes;
                     Append(out, bytes);
                     Append(d_gamma, bytes);
                     Append(d_beta, bytes);
                     return bytes;
                   }});
  works.push_back({"activation", [=] {
                     const Tensor<T, 2> out(rows->view().shape), d_x(rows->view().shape), d_up(rows->view().shape);
                     Activate(Activation::kGelu, rows->read(), rows->read(), out.view());
                     ActivateBackward(Activation::kSilu, rows->read(), rows->read(), rows->read(), d_x.view(),
                                      d_up.view());
                     Bytes bytes;
                     Append(out, bytes);
                     Append(d_x, bytes);
                     Append(d_up, bytes);
                     return bytes;
                   }});
  const auto x = Normal<T, 4>({2, 8, 700, 64});
  const auto cos = Normal<A, 4>({2, 8, 700, 32}), sin = cos;
  for (const bool interleaved : {false, true}) {
    works.push_back({"rope", [=] {
                       const Tensor<T, 4> out(x->view().shape);
                       ApplyRope(x->read(), cos->read(), sin->read(), interleaved, out.view());
                       Bytes bytes;
                       Append(out, bytes);
                       return bytes;
                     }});
  }
}

template <typename T>
void AddLinear(std::vector<Work>& works) {
  const auto weight = Normal<T, 2>({320, 1100});
  const auto bias = Normal<Accumulator<T>, 1>({1100});
  const auto packed = std::make_shared<PackedLinear<T>>(weight->read(), bias->data());
  for (const std::int64_t rows : {1, 9, 100}) {
    const auto x = Normal<T, 2>({rows, 320});
    const auto add = [&](const char* name, const std::function<void(View<T, 2>)>& run) {
      works.push_back({name, [rows, run] {
                         const Tensor<T, 2> out({rows, 1100});
                         run(out.view());
                         Bytes bytes;
                         Append(out, bytes);
                         return bytes;
                       }});
    };
    add("linear", [=](View<T, 2> out) { Linear(x->read(), weight->read(), bias->data(), out); });
    add("packed linear", [=](View<T, 2> out) { (*packed)(x->read(), out); });
    add("packing", [=](View<T, 2> out) { PackedLinear<T>(weight->read(), bias->data())(x->read(), out); });
  }
}

template <typename T>
void AddAttention(std::vector<Work>& works) {
  std::vector<std::shared_ptr<AttentionCase<T>>> cases;
  // Blocks of queries; few queries with split-KV, combined by the last thread; and an empty call.
  constexpr std::int64_t kLengths[][2] = {{150, 300}, {1, 2500}, {3, 1100}, {1, 5000},
                                          {0, 7},     {2, 0},    {5, 5},    {40, 90}};
  for (const auto& [query_len, key_len] : kLengths) {
    AttentionShape shape;
    shape.kv_heads = 2, shape.group = 2, shape.head_dim = 64, shape.value_dim = 40;
    shape.query_len = query_len, shape.key_len = key_len;
    cases.push_back(std::make_shared<AttentionCase<T>>(shape, cases.size()));
  }
  cases.back()->AddSinks();
  struct Results {
    explicit Results(const AttentionCase<T>& test)
        : output(test.output.view().shape), weights(test.weights.view().shape), lse(test.lse.view().shape) {
      weights.ForEach([](auto& weight) { weight = {}; });  // not every call writes them
    }
    AttentionArgs<T> Into(AttentionArgs<T> args, bool with_weights) const {
      args.output = output.view(), args.lse = lse.view();
      if (with_weights) args.weights = weights.view();
      return args;
    }
    void AppendTo(Bytes& bytes) const { Append(output, bytes), Append(lse, bytes), Append(weights, bytes); }
    const Tensor<T, 4> output, weights;
    const Tensor<Accumulator<T>, 3> lse;
  };
  for (const auto& test : cases) {
    if (test->output.Size() == 0) continue;
    for (const bool with_weights : {false, true}) {
      works.push_back({"attention", [test, with_weights] {
                         const Results results(*test);
                         Attention(results.Into(test->args, with_weights));
                         Bytes bytes;
                         results.AppendTo(bytes);
                         return bytes;
                       }});
    }
  }
  // A chunk of keys for each head, and several with sums of d_query of their own.
  for (const std::int64_t key_len : {300, 1100}) {
    AttentionShape shape;
    shape.kv_heads = 2, shape.group = 2, shape.query_len = 150, shape.key_len = key_len;
    const auto test = std::make_shared<BackwardCase<T>>(shape, 1);
    test->AddBias(1, 0.1, {true, false, false, true});
    test->AddSlopes(0.1);
    test->AddSinks();
    test->WantParameters();
    test->RunForward();
    works.push_back({"attention backward", [test] {
                       const Tensor<T, 4> d_query(test->d_query.view().shape), d_key(test->d_key.view().shape);
                       const Tensor<T, 4> d_value(test->d_value.view().shape);
                       const Tensor<Accumulator<T>, 4> d_bias(test->gradients.d_bias[0].shape);
                       const Tensor<Accumulator<T>, 1> d_slopes({test->heads}), d_sinks({test->heads});
                       AttentionGradients<T> gradients = test->gradients;
                       gradients.d_query = d_query.view(), gradients.d_key = d_key.view();
                       gradients.d_value = d_value.view(), gradients.d_bias = {d_bias.view()};
                       gradients.d_alibi_slopes = d_slopes.data(), gradients.d_sinks = d_sinks.data();
                       AttentionBackward(test->args, gradients);
                       Bytes bytes;
                       Append(d_query, bytes), Append(d_key, bytes), Append(d_value, bytes);
                       Append(d_bias, bytes), Append(d_slopes, bytes), Append(d_sinks, bytes);
                       return bytes;
                     }});
  }
  works.push_back({"packed sequences", [cases] {
                     std::vector<Results> results;
                     std::vector<AttentionArgs<T>> calls;
                     for (const auto& test : cases)
                       calls.push_back(results.emplace_back(*test).Into(test->args, false));
                     AttentionVarlen(calls);
                     Bytes bytes;
                     for (const Results& result : results) result.AppendTo(bytes);
                     return bytes;
                   }});
}

template <typename T>
void AddStatistics(std::vector<Work>& works) {
  AttentionShape shape;
  shape.kv_heads = 2, shape.group = 2, shape.query_len = 150, shape.key_len = 600, shape.head_dim = 64;
  const auto test = std::make_shared<AttentionCase<T>>(shape, 1);
  works.push_back({"attention statistics", [test] {
                     const Tensor<T, 3> key_mass({1, 4, 600}), entropy({1, 4, 150}), max_weight({1, 4, 150});
                     const Tensor<T, 4> top_weights({1, 4, 150, 5}), block_mass({1, 4, 10, 12});
                     const Tensor<std::int64_t, 4> top_keys({1, 4, 150, 5});
                     AttentionStatistics(test->args, {key_mass.view(), entropy.view(), max_weight.view(),
                                                      top_weights.view(), top_keys.view(), block_mass.view(), 16, 50});
                     Bytes bytes;
                     Append(key_mass, bytes), Append(entropy, bytes), Append(max_weight, bytes);
                     Append(top_weights, bytes), Append(top_keys, bytes), Append(block_mass, bytes);
                     return bytes;
                   }});
}

template <typename T>
std::vector<Work> Works() {
  std::vector<Work> works;
  AddSoftmax<T>(works);
  AddRowOperations<T>(works);
  AddLinear<T>(works);
  AddAttention<T>(works);
  if constexpr (!kIs16Bit<T>) AddStatistics<T>(works);
  return works;
}

}  // namespace headwise::testing
