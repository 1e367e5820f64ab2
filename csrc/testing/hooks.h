// Switches for tests, off at first. Only the library headwise::testing has them (it is compiled with
// HEADWISE_TEST_HOOKS); in the library that is installed, and in the wheel, they are constants.
#pragma once

namespace headwise::testing {

#ifdef HEADWISE_TEST_HOOKS
// bf16 backends also for the small shapes at which FMA is faster (matmul/bf16_policy.h).
bool Bf16ForAnyShape();
void SetBf16ForAnyShape(bool on);

// Threads also for work that is too short to be worth a parallel region (base/parallel.h).
bool ThreadsForAnyWork();
void SetThreadsForAnyWork(bool on);

// Every question whether a call is interrupted makes its check, without regard to the clock (base/interruption.h).
bool CheckAtEveryQuestion();
void SetCheckAtEveryQuestion(bool on);
#else
constexpr bool Bf16ForAnyShape() { return false; }
constexpr bool ThreadsForAnyWork() { return false; }
constexpr bool CheckAtEveryQuestion() { return false; }
#endif

}  // namespace headwise::testing
