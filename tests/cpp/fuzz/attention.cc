#include "attention.h"

namespace headwise::testing {
namespace {

constexpr double kMaxWork = 1e6;

template <typename T>
void Check(Bytes& bytes) {
  const AttentionShape shape = ShapeFrom(bytes);
  if (WorkOf(shape) > kMaxWork) return;
  const bool any_shape = bytes.Byte() % 4 != 3;
  AttentionInput<T> input(shape, bytes);
  input.Expect();
  const auto run = [&] {
    input.ClearResults();
    input.Run();
  };
  const auto compare = [&] { input.Compare(); };
  OnEveryTarget(bytes, any_shape, run, compare, [&] {
    Bits bits;
    input.Append(bits);
    return bits;
  });
}

}  // namespace
}  // namespace headwise::testing

HEADWISE_FUZZ(Check)
