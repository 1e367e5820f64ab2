// Shared by the tests of every operation: comparison with the reference as assertions, and a fixture that runs each
// test on each target of the machine.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "headwise/runtime.h"
#include "tensor.h"
#include "testing/hooks.h"

namespace headwise::testing {

template <typename T>
::testing::AssertionResult Near(const std::vector<T>& got, const std::vector<double>& expected, double absolute,
                                double relative = 0) {
  const std::string difference = Difference(got, expected, absolute, relative);
  if (difference.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << difference;
}

// The same bits.
template <typename T>
::testing::AssertionResult Identical(const std::vector<T>& a, const std::vector<T>& b) {
  if (SameBits(a, b)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "bits differ";
}

// The parameter is the name of the target, which is forced for the test.
class OnTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    SetTarget(GetParam());
    ASSERT_EQ(GetTarget(), GetParam());
    SetBf16ForAnyShape(true);
  }
  void TearDown() override {
    SetBf16ForAnyShape(false);
    EXPECT_EQ(GetTarget(), GetParam());
    SetTarget(ListTargets().front());
    SetNumThreads(threads_);
  }

 private:
  int threads_ = GetNumThreads();
};

inline std::string TargetOf(const ::testing::TestParamInfo<std::string>& info) { return info.param; }

// The targets without those that differ from another one in bf16 products only, as avx512_amx from avx512
// (targets_test.cc checks this).
inline std::vector<std::string> TargetsWithoutProducts() {
  std::vector<std::string> targets = ListTargets();
  const auto adds_products = [](const std::string& target) { return target.find('_') != std::string::npos; };
  targets.erase(std::remove_if(targets.begin(), targets.end(), adds_products), targets.end());
  return targets;
}

#define HEADWISE_ON_EVERY_TARGET(Suite) INSTANTIATE_TEST_SUITE_P(, Suite, ::testing::ValuesIn(ListTargets()), TargetOf)

// For operations without matrix products.
#define HEADWISE_ON_EVERY_TARGET_WITHOUT_PRODUCTS(Suite) \
  INSTANTIATE_TEST_SUITE_P(, Suite, ::testing::ValuesIn(TargetsWithoutProducts()), TargetOf)

}  // namespace headwise::testing
