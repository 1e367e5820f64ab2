// Several calls in one: each result as the fuzzer of attention expects it, with the bits of a call of its own.
#include <deque>

#include "attention.h"

namespace headwise::testing {
namespace {

constexpr double kMaxWork = 3e5;

template <typename T>
void Check(Bytes& bytes) {
  std::deque<AttentionInput<T>> inputs;
  std::vector<AttentionArgs<T>> calls;
  const bool any_shape = bytes.Byte() % 4 != 3;
  double work = 0;
  for (int count = bytes.Byte() % 7; count > 0; --count) {
    const AttentionShape shape = ShapeFrom(bytes);
    work += WorkOf(shape);
    if (work > kMaxWork) break;
    inputs.emplace_back(shape, bytes).Expect();
    calls.push_back(inputs.back().args);
  }
  const auto clear = [&] {
    for (const AttentionInput<T>& input : inputs) input.ClearResults();
  };
  const auto bits = [&] {
    Bits all;
    for (const AttentionInput<T>& input : inputs) input.Append(all);
    return all;
  };
  const auto run = [&] {
    clear();
    AttentionVarlen(calls);
  };
  const auto compare = [&] {
    for (const AttentionInput<T>& input : inputs) input.Compare();
    const Bits together = bits();
    clear();
    for (const AttentionInput<T>& input : inputs) input.Run();
    if (bits() != together) Fail("bits differ from those of single calls");
  };
  OnEveryTarget(bytes, any_shape, run, compare, bits);
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
