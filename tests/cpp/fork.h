// Forked children of tests, each with a time limit.
#pragma once

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HEADWISE_SKIP_FORK() GTEST_SKIP() << "ThreadSanitizer ends a child of several threads that starts another"
#endif
#endif
#ifndef HEADWISE_SKIP_FORK
#define HEADWISE_SKIP_FORK()
#endif

namespace headwise::testing {

#ifndef _WIN32
// As fork(), but the child is killed after a minute.
inline pid_t ForkWithLimit() {
  const pid_t pid = fork();
  if (pid == 0) alarm(60);
  return pid;
}

// The exit code of a child, or 1000 and the signal that killed it.
inline int ExitCode(pid_t child) {
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
#endif

}  // namespace headwise::testing
