#include "base/interruption.h"

#include <utility>

#include "base/threads/thread_state.h"
#include "testing/hooks.h"

namespace headwise {
namespace {

using Clock = std::chrono::steady_clock;

// Half of the latency that is promised to Python's users goes to loops that ask rarely, and to the handler. A check
// waits for Python's GIL, for up to 5 ms where another thread runs bytecode.
constexpr Clock::duration kInterval = std::chrono::milliseconds(50);

// Work between two readings of the clock: 20 ns in 4 µs on AMX, the fastest; 4 ms on the scalar target, the slowest.
constexpr double kWorkPerReading = 4e6;

}  // namespace

Interruption::Interruption(bool (*check)(void* context), void* context)
    : check_(check),
      context_(context),
      outer_(ThisThread().checked),
      outer_stopped_(ThisThread().stopped),
      uncounted_(kWorkPerReading) {
  ThisThread().checked = this;
  ThisThread().stopped = &stopped_;
}

Interruption::~Interruption() {
  ThisThread().checked = outer_;
  ThisThread().stopped = outer_stopped_;
}

bool Interruption::CheckIsDue(double work) {
  if (testing::CheckAtEveryQuestion()) return true;
  uncounted_ -= work;
  if (uncounted_ > 0) return false;
  uncounted_ = kWorkPerReading;
  const Clock::time_point now = Clock::now();
  if (next_check_ == Clock::time_point()) next_check_ = now + kInterval;  // the first reading: the call has just begun
  return now >= next_check_;
}

void Interruption::Count(double work) {
  if (stopped_.load(std::memory_order_relaxed) || !CheckIsDue(work)) return;
  ThreadState& thread = ThisThread();
  const Restore restore = std::exchange(thread.restore, nullptr);
  if (check_(context_)) stopped_.store(true, std::memory_order_relaxed);
  thread.restore = restore;
  if (restore) restore();
  next_check_ = Clock::now() + kInterval;
}

bool Interrupted(double work) {
  const ThreadState& thread = ThisThread();
  if (!thread.stopped) return false;
  if (thread.checked) thread.checked->Count(work);
  return thread.stopped->load(std::memory_order_relaxed);
}

StopFlag CurrentStopFlag() { return ThisThread().stopped; }

Restore RestoreAfterChecks(Restore restore) { return std::exchange(ThisThread().restore, restore); }

}  // namespace headwise
