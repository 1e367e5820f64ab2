// Every operation is left at whatever question an interruption finds it, and the next call computes the same bits. A
// check that does not stop the call, and that computes itself, changes nothing.
#include "base/interruption.h"

#include <functional>
#include <limits>

#include "base/parallel.h"
#include "works.h"

namespace headwise::testing {
namespace {

// Stops the call at check number `at`, from 0, and runs `within` at every 16th.
struct Checks {
  static bool Check(void* context) {
    auto& checks = *static_cast<Checks*>(context);
    if (checks.count % 16 == 0 && checks.within) checks.within();
    return checks.count++ == checks.at;
  }

  int at = std::numeric_limits<int>::max();
  std::function<void()> within = nullptr;
  int count = 0;
};

// The result, or nothing if the call was interrupted.
Bytes RunWith(Checks& checks, const Work& work) {
  const Interruption interruption(&Checks::Check, &checks);
  try {
    return work.run();
  } catch (const CallInterrupted&) {
    return {};
  }
}

class InterruptionTest : public OnTarget {
 protected:
  void SetUp() override {
    OnTarget::SetUp();
    SetThreadsForAnyWork(true);
    SetCheckAtEveryQuestion(true);
  }
  void TearDown() override {
    SetCheckAtEveryQuestion(false);
    SetThreadsForAnyWork(false);
    OnTarget::TearDown();
  }
};

template <typename T>
void StopEverywhere() {
  for (const Work& work : Works<T>()) {
    SCOPED_TRACE(work.name);
    SetNumThreads(1);
    const Bytes expected = work.run();
    Checks all;
    EXPECT_EQ(RunWith(all, work), expected);
    ASSERT_GT(all.count, 1);
    for (const int at : {0, all.count / 2, all.count - 1}) {
      Checks checks{at};
      EXPECT_TRUE(RunWith(checks, work).empty()) << "at " << at << " of " << all.count;
      EXPECT_EQ(checks.count, at + 1) << "a check after the one that stopped the call";
    }
    SetNumThreads(3);
    Checks checks{all.count / 8};  // of one thread of three
    const Bytes result = RunWith(checks, work);
    EXPECT_TRUE(result.empty() || result == expected);
    EXPECT_EQ(result.empty(), checks.count > checks.at);
    EXPECT_EQ(work.run(), expected);
  }
}

TEST_P(InterruptionTest, StopsAtAnyQuestion) {
  StopEverywhere<float>();
  StopEverywhere<BFloat16>();
}

template <typename T>
void ComputeWithinChecks() {
  const auto x = Normal<T, 2>({40, 64}), weight = Normal<T, 2>({64, 70});
  const Work inner{"linear", [&] {  // on AMX tiles, where there are any
                     const Tensor<T, 2> out({40, 70});
                     Linear(x->read(), weight->read(), nullptr, out.view());
                     Bytes bytes;
                     Append(out, bytes);
                     return bytes;
                   }};
  const Bytes of_inner = inner.run();
  for (const Work& work : Works<T>()) {
    SCOPED_TRACE(work.name);
    for (const int threads : {1, 3}) {
      SetNumThreads(threads);
      const Bytes expected = work.run();
      Checks outer, whole, stopped{1};
      outer.within = [&] {
        EXPECT_EQ(RunWith(whole, inner), of_inner);
        stopped.count = 0;
        EXPECT_TRUE(RunWith(stopped, inner).empty());
      };
      EXPECT_EQ(RunWith(outer, work), expected);
      EXPECT_GT(whole.count, 0);
    }
  }
}

TEST_P(InterruptionTest, ChecksMayCompute) {
  ComputeWithinChecks<float>();
  ComputeWithinChecks<BFloat16>();
}

// Weights that were packed in part are not kept.
TEST_P(InterruptionTest, PacksAgainForAnotherTarget) {
  SetNumThreads(1);  // the calling thread asks all the questions
  const auto x = Normal<float, 2>({40, 700}), weight = Normal<float, 2>({700, 1100});
  const auto multiply = [&](const PackedLinear<float>& linear) {
    const Tensor<float, 2> out({40, 1100});
    linear(x->read(), out.view());
    return out.Values();
  };
  for (const std::string& other : ListTargets()) {
    SetTarget(other);
    const std::vector<float> expected = multiply(PackedLinear<float>(weight->read(), nullptr));
    SetTarget(GetParam());
    const PackedLinear<float> linear(weight->read(), nullptr);
    SetTarget(other);
    for (const int at : {0, 2, 4}) {
      Checks checks{at};
      const Interruption interruption(&Checks::Check, &checks);
      EXPECT_THROW(multiply(linear), CallInterrupted);
    }
    EXPECT_EQ(multiply(linear), expected);
    SetTarget(GetParam());
  }
}

HEADWISE_ON_EVERY_TARGET(InterruptionTest);

}  // namespace
}  // namespace headwise::testing
