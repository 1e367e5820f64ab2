#include "headwise/attention_statistics.h"

#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "python/arrays.h"
#include "python/attention_spec.h"

namespace headwise::bindings {
namespace {

struct StatisticsField {  // AttentionStatistics, in its order
  enum : std::size_t { kKeyMass, kEntropy, kMaxWeight, kTopKeys, kBlockMass, kLse, kCount };
};

template <typename T>
WeightStatistics<T> ReadStatistics(const py::tuple& results, const std::array<std::int64_t, 2>& block_size) {
  const auto array = [&](std::size_t field, const char* name) { return ToOptionalArray(results[field], name); };
  WeightStatistics<T> statistics;
  statistics.key_mass = ToView<T, 3>(array(StatisticsField::kKeyMass, "key_mass"), "key_mass");
  statistics.entropy = ToView<T, 3>(array(StatisticsField::kEntropy, "entropy"), "entropy");
  statistics.max_weight = ToView<T, 3>(array(StatisticsField::kMaxWeight, "max_weight"), "max_weight");
  statistics.block_mass = ToView<T, 4>(array(StatisticsField::kBlockMass, "block_mass"), "block_mass");
  if (const py::handle top = results[StatisticsField::kTopKeys]; !top.is_none()) {
    const py::tuple fields = ToTuple(top, "top_k");
    CheckFields(fields, 2, "top_k");
    statistics.top_weights = ToView<T, 4>(ToArray(fields[0], "top_k"), "top_k");
    statistics.top_keys = ToView<std::int64_t, 4>(ToArray(fields[1], "top_k"), "top_k");
  }
  statistics.query_size = block_size[0], statistics.key_size = block_size[1];
  return statistics;
}

}  // namespace

void RegisterAttentionStatistics(py::module_& module) {
  module.def(
      "attention_statistics",
      [](const py::array& query, const py::array& key, const py::tuple& results,
         const std::array<std::int64_t, 2>& block_size, const py::tuple& spec) {
        CheckFields(results, StatisticsField::kCount, "results");
        WithType(query, [&](auto type) {
          using T = decltype(type);
          AttentionArgs<T> args;
          args.query = ToView<const T, 4>(query, "query");
          ReadKeysAndValues<T>(key, key, spec, args);
          args.lse = ToView<T, 3>(ToOptionalArray(results[StatisticsField::kLse], "lse"), "lse");
          const auto [batch, heads, query_len, head_dim] = args.query.shape;
          args.spec = ReadSpec<T>(spec, {batch, heads, query_len, args.key.shape[2]});
          const auto statistics = ReadStatistics<T>(results, block_size);
          const ReleasedGil release;
          AttentionStatistics(args, statistics);
        });
      },
      py::arg("query"), py::arg("key"), py::arg("results"), py::arg("block_size"), py::arg("spec"));
}

}  // namespace headwise::bindings
