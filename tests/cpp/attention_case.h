// Arguments of attention, drawn at random or set by hand, that check their own result.
#pragma once

#include "attention_arguments.h"
#include "support.h"

namespace headwise::testing {

template <typename T>
class AttentionCase : public AttentionArguments<T> {
 public:
  AttentionCase(const AttentionShape& shape, std::uint64_t seed) : AttentionArguments<T>(shape, seed) {
    FillNormal(this->query, this->random);
    FillNormal(this->key, this->random);
    FillNormal(this->value, this->random);
  }

  // Runs, and compares every requested result with the reference.
  void Check() const { CheckWithin(this->Tolerance()); }

  // `tolerance` is that of a weight.
  void CheckWithin(double tolerance) const {
    this->Run();
    EXPECT_EQ(this->Difference(reference::Attention(this->args), tolerance), "");
  }
};

// Scores of every other query grow by `step` every hundred keys, and of every third query by twice that: some running
// maxima of a tile of rows change in a key block, and the others do not.
template <typename T>
void Grow(const AttentionCase<T>& test, double step) {
  for (std::int64_t i = 0; i < test.shape.query_len; ++i) {
    *test.query.view().at(0, 0, i, 0) = reference::Nearest<T>(i % 3 == 2 ? 2 : i % 2);
  }
  for (std::int64_t j = 0; j < test.shape.key_len; ++j) {
    const double height = step / test.args.spec.scale * static_cast<double>(j / 100);
    *test.key.view().at(0, 0, j, 0) = reference::Nearest<T>(height);
  }
}

}  // namespace headwise::testing
