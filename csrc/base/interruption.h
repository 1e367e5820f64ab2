// Interruption of long calls, as by Ctrl-C in Python.
//
// A caller that wants its calls on this thread to be interruptible keeps an Interruption alive around them. Long loops
// ask Interrupted() and, if it is true, leave with their results incomplete. RunParallel then throws CallInterrupted on
// the calling thread, once no thread is at work on the call any more. Without an Interruption nothing is ever
// interrupted.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>

namespace headwise {

class CallInterrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "the call was interrupted"; }
};

class Interruption {
 public:
  // check(context) is called on this thread about every kInterval of a call, also from within a task; it may run any
  // code, such as another call. If it returns true, the call ends as soon as possible, and it is not called again.
  Interruption(bool (*check)(void* context), void* context);
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

 private:
  friend bool Interrupted(double work);
  void Count(double work);
  bool CheckIsDue(double work);

  bool (*const check_)(void* context);
  void* const context_;
  Interruption* const outer_;  // of the call during whose check this one was made
  const std::atomic<bool>* const outer_stopped_;
  std::atomic<bool> stopped_{false};
  double uncounted_;  // work that may pass before the clock is read again
  std::chrono::steady_clock::time_point next_check_;
};

// Whether the call that this thread works on is to be left. `work`: floating-point operations since the last question,
// or as much time. The clock is read every few million of them, so loops should ask at least that often, which is every
// few milliseconds on the slowest target; a question alone takes about 2 ns.
bool Interrupted(double work);

// While the calling thread waits for other threads: the clock is read at once.
constexpr double kAnyWork = 1e300;

// Of the call that this thread works on; null: not interruptible. Workers have that of the calling thread.
using StopFlag = const std::atomic<bool>*;
StopFlag CurrentStopFlag();

// A check may run code that changes the state of the calling thread. `restore` is called after each check on this
// thread, until it is replaced; null: nothing to restore. Returns the function before.
using Restore = void (*)();
Restore RestoreAfterChecks(Restore restore);

}  // namespace headwise
