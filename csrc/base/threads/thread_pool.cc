#include "base/threads/thread_pool.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "base/interruption.h"
#include "base/threads/thread_state.h"
#include "base/threads/worker_thread.h"

namespace headwise {
namespace {

using Clock = std::chrono::steady_clock;

// Tasks report their work themselves (interruption.h); this is for those that are too short to.
constexpr double kTaskWork = 1e5;

// How long an idle worker looks for the next job before it sleeps. A call after a longer pause waits 30 us for it to
// wake. But it delays other pools' threads that wake on its processor: a product of PyTorch between two calls takes
// 210 us instead of 165, and would take 365 us if workers looked for 200 us.
constexpr std::chrono::microseconds kLook{50};
// How long a calling thread looks for the end of the last tasks before it sleeps.
constexpr std::chrono::microseconds kWait{200};
constexpr std::chrono::milliseconds kCheck{10};  // between questions for an interruption
constexpr std::chrono::seconds kRetry{1};        // after the system has refused a thread

void Relax() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// OMP_WAIT_POLICY=passive: threads that wait do not spin.
bool Passive() {
  const char* const value = std::getenv("OMP_WAIT_POLICY");
  std::string policy = value ? value : "";
  for (char& c : policy) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return policy == "passive";
}

template <typename Done>
bool Spin(std::chrono::microseconds time, const Done& done) {
  const Clock::time_point end = Clock::now() + time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      Relax();
    }
  } while (Clock::now() < end);
  return false;
}

class Pool {
 public:
  // Threads for a call that wants at least two, counting the caller.
  int Start(int wanted);
  void Run(Job& job);
  [[noreturn]] void Serve();

  // Around a fork within a job of the forking thread. No task runs meanwhile.
  std::int64_t Suspend(Job& job);

  void Open(Job& job);

 private:
  void Grow(int workers);
  void Close(Job& job);  // with the lock held; workers do not join any more
  void WaitForWorkers(Job& job, bool check);
  Job& Join(int& thread);
  Job* FindPlace();  // with the lock held
  void Leave(Job& job);
  void LookForPlaces();
  void MakeWay();
  bool HaveProcessors() const { return workers_.load() < processors_.load(); }  // for each thread its own

  const bool passive_ = Passive();
  std::atomic<int> processors_{1};
  std::atomic<int> workers_{0};
  std::atomic<int> callers_{0};  // threads with a job that is shared with workers
  std::atomic<int> places_{0};   // that workers may take, in all open jobs

  std::atomic<int> caller_processor_{-1};  // on which the last job was opened

  std::mutex growing_;
  Clock::time_point retry_{};  // not to ask for a thread before

  std::mutex mutex_;  // for the jobs and the members below
  std::condition_variable opened_, left_;
  Job* jobs_ = nullptr;  // the open ones, oldest first
  int idle_ = 0;         // workers that are in no job
  int asleep_ = 0;       // those of them that do not spin
};

// Never destroyed: workers may be running when the process ends.
union Storage {
  Storage() : pool() {}
  ~Storage() {}
  Pool pool;
} storage;

void Work(Job& job, int thread) {
  while (!Interrupted(kTaskWork)) {
    const std::int64_t task = job.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    job.task(job.context, task, thread);
  }
}

bool Exhausted(const Job& job) {
  return job.next.load(std::memory_order_relaxed) >= job.tasks ||
         (job.stopped && job.stopped->load(std::memory_order_relaxed));
}

int Pool::Start(int wanted) {
  // Calls at the same time share the workers, of which there are not more than processors.
  const int calls = callers_.load(std::memory_order_relaxed) + 1, each = wanted - 1;
  const int workers = std::max(each, std::min(each * calls, processors_.load(std::memory_order_relaxed) - calls));
  if (workers_.load(std::memory_order_relaxed) < workers) Grow(workers);
  return std::min(wanted, workers_.load(std::memory_order_relaxed) + 1);
}

void Pool::Grow(int workers) {
  const std::lock_guard<std::mutex> lock(growing_);
  if (workers_.load() >= workers || Clock::now() < retry_) return;
  processors_ = WorkerProcessors();
  while (workers_.load() < workers) {
    {
      const std::lock_guard<std::mutex> count(mutex_);
      ++idle_;
    }
    if (!StartWorkerThread([] { storage.pool.Serve(); })) {
      const std::lock_guard<std::mutex> count(mutex_);
      --idle_;
      retry_ = Clock::now() + kRetry;
      return;
    }
    ++workers_;
  }
}

void Pool::Open(Job& job) {
  int wake = 0;
  caller_processor_.store(CurrentProcessor(), std::memory_order_relaxed);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Job** last = &jobs_;
    while (*last) last = &(*last)->following;
    *last = &job;
    job.following = nullptr, job.open = true;
    places_.fetch_add(job.threads - job.joined, std::memory_order_relaxed);
    wake = std::min(asleep_, job.threads - job.joined - (idle_ - asleep_));
  }
  for (; wake > 0; --wake) opened_.notify_one();
}

void Pool::Close(Job& job) {
  if (!job.open) return;
  Job** link = &jobs_;
  while (*link != &job) link = &(*link)->following;
  *link = job.following;
  job.open = false;
  places_.fetch_sub(job.threads - job.joined, std::memory_order_relaxed);
}

void Pool::WaitForWorkers(Job& job, bool check) {
  const auto done = [&] { return job.working.load(std::memory_order_acquire) == 0; };
  if (done() || (!passive_ && Spin(kWait, done))) return;
  std::unique_lock<std::mutex> lock(mutex_);
  job.awaited = true;
  while (!left_.wait_for(lock, kCheck, done)) {
    lock.unlock();
    if (check) Interrupted(kAnyWork);
    lock.lock();
  }
  job.awaited = false;
}

void Pool::Run(Job& job) {
  ThreadState& state = ThisThread();
  job.stopped = state.stopped;
  job.outer = std::exchange(state.job, &job);
  job.shared = job.threads > 1 && job.tasks > 1 && !job.outer;
  if (job.shared) callers_.fetch_add(1, std::memory_order_relaxed), Open(job);
  Work(job, 0);
  if (job.shared) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Close(job);
    }
    WaitForWorkers(job, true);
    callers_.fetch_sub(1, std::memory_order_relaxed);
  }
  state.job = job.outer;
}

void Pool::Serve() {
  ThreadState given;
  SetThisThread(given);
  ThreadState& state = ThisThread();
  while (true) {
    int thread = 0;
    Job& job = Join(thread);
    state.job = &job, state.stopped = job.stopped;
    Work(job, thread);
    Leave(job);
  }
}

// In a KVM guest, Linux takes an idle processor for one that the host has preempted, and wakes a worker on the
// processor of the calling thread, where it would stay until the next timer tick.
void Pool::MakeWay() {
  if (!HaveProcessors()) return;
  const int here = CurrentProcessor();
  if (here >= 0 && here == caller_processor_.load(std::memory_order_relaxed)) LeaveProcessor(here);
}

void Pool::LookForPlaces() {
  if (!passive_ && HaveProcessors()) Spin(kLook, [this] { return places_.load(std::memory_order_relaxed) > 0; });
}

Job& Pool::Join(int& thread) {
  while (true) {
    LookForPlaces();
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    const auto place = [this] { return places_.load(std::memory_order_relaxed) > 0; };
    if (!place()) {
      opened_.wait(lock, place);
      lock.unlock();
      MakeWay();
      lock.lock();
    }
    --asleep_;
    if (Job* const job = FindPlace()) {
      thread = job->joined++;
      places_.fetch_sub(1, std::memory_order_relaxed);
      job->working.fetch_add(1, std::memory_order_relaxed);
      --idle_;
      return *job;
    }
  }
}

Job* Pool::FindPlace() {
  for (Job *job = jobs_, *following; job; job = following) {
    following = job->following;
    if (Exhausted(*job)) {
      Close(*job);
    } else if (job->joined < job->threads) {
      return job;
    }
  }
  return nullptr;
}

void Pool::Leave(Job& job) {
  bool awaited = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Close(job);
    ++idle_;
    awaited = job.awaited;
    job.working.fetch_sub(1, std::memory_order_release);  // the job may be gone from here on
  }
  if (awaited) left_.notify_all();
}

std::int64_t Pool::Suspend(Job& job) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Close(job);
  }
  const std::int64_t next = job.next.exchange(job.tasks);
  WaitForWorkers(job, false);
  return next;
}

// --- fork ---

// The child has none of the workers, and starts its own. A fork within a job (by a signal handler that runs in it)
// waits for the workers in it, so each task of the job has ended or not begun; in the child, the calling thread does
// the rest.
std::int64_t suspended_at = 0;  // of the one thread that forks at a time: handlers run under a lock of the C library

Job* SharedJobOfThisThread() {
  Job* job = ThisThread().job;
  while (job && job->outer) job = job->outer;
  return job && job->shared ? job : nullptr;
}

void BeforeFork() {
  if (Job* const job = SharedJobOfThisThread()) suspended_at = storage.pool.Suspend(*job);
}

void AfterForkInParent() {
  if (Job* const job = SharedJobOfThisThread()) {
    job->next = suspended_at, job->joined = 1;
    // A job without further tasks may be closed already, with the calling thread on its way out of it.
    if (!Exhausted(*job)) storage.pool.Open(*job);
  }
}

void AfterForkInChild() {
  new (&storage.pool) Pool;
  if (Job* const job = SharedJobOfThisThread()) job->next = suspended_at, job->joined = 1;
}

[[maybe_unused]] const bool fork_handlers = (AtFork(BeforeFork, AfterForkInParent, AfterForkInChild), true);

}  // namespace

int StartWorkers(int wanted) { return wanted < 2 ? 1 : storage.pool.Start(wanted); }

void RunJob(Job& job) noexcept { storage.pool.Run(job); }

}  // namespace headwise
