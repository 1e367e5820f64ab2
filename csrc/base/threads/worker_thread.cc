#include "base/threads/worker_thread.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>

#include "base/threads/thread_pool.h"

#ifdef _WIN32
#include <exception>
#else
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif

namespace headwise {

#ifdef _WIN32
void AtFork(void (*)(), void (*)(), void (*)()) {}

bool StartWorkerThread(void (*function)()) {
  try {
    std::thread(function).detach();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}
#else
namespace {

// Kernels use up to 20 KB.
constexpr std::size_t kStack = std::size_t{1} << 20;

#ifdef __linux__
cpu_set_t given;  // by SetWorkerProcessors
std::atomic<bool> is_given{false};

bool Processors(cpu_set_t& processors) {
  if (!is_given.load(std::memory_order_acquire))
    return sched_getaffinity(getpid(), sizeof(processors), &processors) == 0;
  processors = given;
  return true;
}

void SpreadThisThread() {
  cpu_set_t own, wanted;
  if (sched_getaffinity(0, sizeof(own), &own) != 0 || !Processors(wanted) || CPU_EQUAL(&own, &wanted)) return;
  sched_setaffinity(0, sizeof(wanted), &wanted);
}
// From version 6.12 on, Linux lets a thread that wakes wait for the end of the running thread's slice, 2.8 ms, unless
// its own slice is shorter: sched_runtime of sched_setattr(2), which the C library does not declare. Earlier versions
// take no notice. A refusal (seccomp) does no harm.
struct SchedulingAttributes {
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime_ns, deadline_ns, period_ns;
};

void ShortenSlices() {
#ifdef SYS_sched_setattr
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime_ns = 100'000;  // the least that Linux takes
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}
#else
void SpreadThisThread() {}
void ShortenSlices() {}
#endif

void* Main(void* function) {
  SpreadThisThread();
  ShortenSlices();
  reinterpret_cast<void (*)()>(function)();
  return nullptr;
}

}  // namespace

void AtFork(void (*prepare)(), void (*parent)(), void (*child)()) { pthread_atfork(prepare, parent, child); }

bool StartWorkerThread(void (*function)()) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
#ifndef __SANITIZE_ADDRESS__  // its frames are larger
  pthread_attr_setstacksize(&attributes, kStack);
#endif
  // The thread inherits the mask. Signals for the process go to its own threads; those of faults cannot be blocked.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, Main, reinterpret_cast<void*>(function));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return error == 0;
}
#endif

#ifdef __linux__
int CurrentProcessor() { return sched_getcpu(); }

// sched_setaffinity moves a thread before it returns. What somebody else sets meanwhile is kept, except in the
// microsecond between a check and the call that follows it.
void LeaveProcessor(int processor) {
  cpu_set_t own, others, now;
  if (sched_getaffinity(0, sizeof(own), &own) != 0 || !CPU_ISSET(processor, &own) || CPU_COUNT(&own) < 2) return;
  others = own;
  CPU_CLR(processor, &others);
  if (sched_setaffinity(0, sizeof(others), &others) != 0) return;
  if (sched_getaffinity(0, sizeof(now), &now) != 0 || !CPU_EQUAL(&now, &others)) return;
  if (sched_setaffinity(0, sizeof(own), &own) == 0) return;
  std::memset(&own, 0xff, sizeof(own));  // the process's processors have changed: all that it has now
  sched_setaffinity(0, sizeof(own), &own);
}

int WorkerProcessors() {
  cpu_set_t processors;
  if (Processors(processors)) return std::max(1, CPU_COUNT(&processors));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

void SetWorkerProcessors(const std::vector<int>& processors) {
  CPU_ZERO(&given);
  for (const int processor : processors) {
    if (processor >= 0 && processor < CPU_SETSIZE) CPU_SET(processor, &given);
  }
  is_given.store(CPU_COUNT(&given) > 0, std::memory_order_release);
}
#else
int CurrentProcessor() { return -1; }
void LeaveProcessor(int) {}
int WorkerProcessors() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }
void SetWorkerProcessors(const std::vector<int>&) {}
#endif

}  // namespace headwise
