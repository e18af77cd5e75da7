#pragma once

#include <sys/types.h>

namespace kuasar::os {

/// How a process ended: its exit code, or 128 + n when signal n killed it; 255 when nobody can
/// tell any more.
struct ProcessEnd {
  int code = 255;
  bool known = false;
};

/// Reads the status of a process that has ended, without reaping it: from waitid(2) when it is our
/// child; from PIDFD_GET_INFO (Linux 6.15) when another parent has reaped it; from /proc/PID/stat
/// while it is another parent's zombie. Allocates nothing: the keeper uses it, too.
ProcessEnd read_process_end(int pidfd, pid_t pid);

}  // namespace kuasar::os
