#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "base/error.h"

namespace kuasar::os {

/// What a process has in memory, in bytes: /proc/PID/smaps_rollup (proc(5), Linux 4.14).
struct MemoryUse {
  /// Resident, shared pages in full: what the process would cost if nobody else used them.
  std::uint64_t rss = 0;
  /// Shared pages divided by the number of their users.
  std::uint64_t pss = 0;
  std::uint64_t private_dirty = 0;
  std::uint64_t anonymous = 0;

  MemoryUse& operator+=(const MemoryUse& other);
};

/// kNotFound when there is no such process (any more); needs the right to trace it (ptrace(2)).
Result<MemoryUse> memory_of(pid_t pid);

/// User and system time of a process, without its children, in seconds: fields 14 and 15 of
/// /proc/PID/stat. kNotFound as above.
Result<double> cpu_seconds_of(pid_t pid);

/// The same of the threads that it has now, to the nanosecond: /proc/PID/task/*/schedstat
/// (Documentation/scheduler/sched-stats.rst). kNotFound as above.
Result<double> thread_seconds_of(pid_t pid);

/// Threads of a process; kNotFound as above.
Result<unsigned> threads_of(pid_t pid);

/// Every process of this PID namespace, ascending; kernel threads as well.
std::vector<pid_t> all_pids();

}  // namespace kuasar::os
