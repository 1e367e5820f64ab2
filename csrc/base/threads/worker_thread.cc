#include "base/threads/worker_thread.h"

#include <algorithm>
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
#else
void SpreadThisThread() {}
#endif

void* Main(void* function) {
  SpreadThisThread();
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
int WorkerProcessors() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }
void SetWorkerProcessors(const std::vector<int>&) {}
#endif

}  // namespace headwise
