#pragma once

#include <sys/types.h>

#include <chrono>

#include "base/error.h"

namespace kuasar::os {

/// SIGSTOP to a process, and the wait until all of its threads have stopped: a system call in which
/// one was waiting is begun anew after continue_process(). kNotFound when it has ended,
/// kDeadlineExceeded after `timeout`; then it is continued. Blocking.
Result<> stop_process(int pidfd, pid_t pid, std::chrono::milliseconds timeout);
/// SIGCONT; one that has ended or was not stopped: nothing.
void continue_process(int pidfd);

}  // namespace kuasar::os
