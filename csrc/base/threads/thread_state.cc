#include "base/threads/thread_state.h"

#ifndef _WIN32
#include <pthread.h>
#endif

namespace headwise {

#ifdef _WIN32
namespace {
thread_local ThreadState own;
thread_local ThreadState* state = &own;
}  // namespace

ThreadState& ThisThread() { return *state; }
void SetThisThread(ThreadState& given) { state = &given; }
#else
namespace {
const pthread_key_t key = [] {
  pthread_key_t created{};
  pthread_key_create(&created, nullptr);
  return created;
}();
}  // namespace

ThreadState& ThisThread() {
  if (void* const state = pthread_getspecific(key)) return *static_cast<ThreadState*>(state);
  thread_local ThreadState own;
  pthread_setspecific(key, &own);
  return own;
}

void SetThisThread(ThreadState& state) { pthread_setspecific(key, &state); }
#endif

}  // namespace headwise
