#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::bench {

/// The CPU time of the cgroups that some processes live in, with all that they start and leave
/// there: on a node those of containerd (with its shims), the daemons and the keepers. cgroup v1
/// (cpuacct) or v2 (cpu).
class CpuMeter {
 public:
  /// kFailedPrecondition when this process would be counted as well, because it lives in or below
  /// one of the cgroups; kNotFound where the machine has no CPU accounting.
  static Result<CpuMeter> of(const std::vector<pid_t>& pids);

  /// Seconds of CPU time since the cgroups were made, in user and kernel.
  double seconds() const;

 private:
  struct Counter {
    std::string file;
    bool v2 = false;
  };
  std::vector<Counter> counters_;
};

}  // namespace kuasar::bench
