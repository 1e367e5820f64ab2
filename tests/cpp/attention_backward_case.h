// Arguments of the backward pass of attention, which check their own result.
#pragma once

#include "attention_backward_arguments.h"
#include "attention_case.h"

namespace headwise::testing {

template <typename T>
class BackwardCase : public BackwardArguments<T, AttentionCase<T>> {
 public:
  using BackwardArguments<T, AttentionCase<T>>::BackwardArguments;

  // Runs both passes and compares every gradient with the reference.
  void CheckGradients() const {
    this->RunForward();
    this->RunBackward();
    EXPECT_EQ(this->GradientDifference(reference::AttentionBackward(this->args, this->gradients)), "");
  }
};

}  // namespace headwise::testing
