#pragma once

#include <sys/types.h>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// pidfd_open(2). kNotFound when there is no such process.
Result<UniqueFd> pidfd_open(pid_t pid);

/// pidfd_send_signal(2). kNotFound when the process has ended.
Result<> pidfd_signal(int pidfd, int signal);

/// pidfd_getfd(2): a duplicate of descriptor `fd` of that process. Needs CAP_SYS_PTRACE over it,
/// and a Yama that forbids attaching (ptrace_scope 3) forbids this, too. kNotFound when the process
/// has ended.
Result<UniqueFd> pidfd_getfd(int pidfd, int fd);

/// True once the process has ended (a zombie counts as ended).
bool pidfd_exited(int pidfd);

/// Start time in clock ticks since boot (/proc/PID/stat field 22, proc(5)): with the pid it names
/// a process for good within one boot. kNotFound when the process is gone.
Result<unsigned long long> process_start_time(pid_t pid);

/// True while the process that had this pid and this start time runs (a zombie does not).
bool process_lives(pid_t pid, unsigned long long start_time);

}  // namespace kuasar::os
