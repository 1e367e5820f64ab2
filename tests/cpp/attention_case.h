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

  // Runs, and compares all that was asked for with the reference.
  void Check() const { CheckWithin(this->Tolerance()); }

  // `tolerance` is that of a weight.
  void CheckWithin(double tolerance) const {
    this->Run();
    EXPECT_EQ(this->Difference(reference::Attention(this->args), tolerance), "");
  }
};

}  // namespace headwise::testing
