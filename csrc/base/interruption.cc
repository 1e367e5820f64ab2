#include "base/interruption.h"

#include <utility>

namespace headwise {
namespace {

using Clock = std::chrono::steady_clock;

// Half of the latency that is promised to Python's users goes to loops that ask rarely, and to the handler. A check
// waits for Python's GIL, for up to 5 ms where another thread runs bytecode.
constexpr Clock::duration kInterval = std::chrono::milliseconds(50);

// Work between two readings of the clock: 20 ns in 4 µs on AMX, the fastest; 4 ms on the scalar target, the slowest.
constexpr double kWorkPerReading = 4e6;

struct CallOfThread {
  StopFlag stopped = nullptr;       // null: the call is not interruptible
  Interruption* checked = nullptr;  // on the calling thread
  Restore restore = nullptr;
};
thread_local CallOfThread call;

}  // namespace

Interruption::Interruption(bool (*check)(void* context), void* context)
    : check_(check),
      context_(context),
      outer_(call.checked),
      outer_stopped_(call.stopped),
      uncounted_(kWorkPerReading) {
  call.checked = this;
  call.stopped = &stopped_;
}

Interruption::~Interruption() {
  call.checked = outer_;
  call.stopped = outer_stopped_;
}

void Interruption::Count(double work) {
  uncounted_ -= work;
  if (uncounted_ > 0 || stopped_.load(std::memory_order_relaxed)) return;
  uncounted_ = kWorkPerReading;
  const Clock::time_point now = Clock::now();
  if (next_check_ == Clock::time_point()) next_check_ = now + kInterval;  // the first reading: the call has just begun
  if (now < next_check_) return;
  const Restore restore = std::exchange(call.restore, nullptr);
  if (check_(context_)) stopped_.store(true, std::memory_order_relaxed);
  call.restore = restore;
  if (restore) restore();
  next_check_ = Clock::now() + kInterval;
}

bool Interrupted(double work) {
  if (!call.stopped) return false;
  if (call.checked) call.checked->Count(work);
  return call.stopped->load(std::memory_order_relaxed);
}

StopFlag CurrentStopFlag() { return call.stopped; }

JoinCall::JoinCall(StopFlag stopped) : outer_(std::exchange(call.stopped, stopped)) {}
JoinCall::~JoinCall() { call.stopped = outer_; }

Restore RestoreAfterChecks(Restore restore) { return std::exchange(call.restore, restore); }

}  // namespace headwise
