#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "os/cgroup_files.h"

namespace kuasar::os {

/// Limits of a container in the terms of the OCI runtime specification (LinuxResources), whatever
/// the cgroup version. What is absent stays as it is.
struct CgroupLimits {
  std::optional<std::uint64_t> cpu_shares;
  /// Microseconds per period; -1 means no limit.
  std::optional<std::int64_t> cpu_quota;
  std::optional<std::uint64_t> cpu_period;
  std::string cpuset_cpus;
  std::string cpuset_mems;
  /// Bytes; -1 means no limit.
  std::optional<std::int64_t> memory;
  std::optional<std::int64_t> memory_reservation;
  /// Memory and swap together, as v1 counts them.
  std::optional<std::int64_t> memory_swap;
  /// -1 means no limit.
  std::optional<std::int64_t> pids;
  std::optional<std::uint64_t> io_weight;

  struct Hugepages {
    /// As in the files' names: "2MB".
    std::string page_size;
    std::uint64_t bytes = 0;
    bool operator==(const Hugepages&) const = default;
  };
  std::vector<Hugepages> hugepages;
  /// Files of cgroup v2 and what to write into them.
  std::map<std::string, std::string> unified;

  bool operator==(const CgroupLimits&) const = default;
};

/// What the kernel has now, as far as the order or the value of a write depends on it.
struct CgroupNow {
  std::optional<std::uint64_t> memory;
  std::optional<std::int64_t> cpu_quota;
  std::optional<std::uint64_t> cpu_period;
  /// v1 only: no swap accounting, no file for it.
  bool swap_file = true;
  /// The file of the weight, by scheduler: "blkio.bfq.weight", "io.weight"; empty: none.
  std::string io_weight_file;
};
CgroupNow read_cgroup_now(const CgroupControllers& controllers);

/// One write into a control file.
struct ControlWrite {
  std::string file;
  std::string value;
  bool operator==(const ControlWrite&) const = default;
};

/// The v2 weight of v1 shares: [2, 262144] onto [1, 10000] (linear, as runc and the kubelet do).
std::uint64_t weight_of_shares(std::uint64_t shares);

/// What has to be written, in an order in which no step is refused: on v1 memory may never be
/// above memory and swap, and quota/period never above the parent's, also in between. Pure.
/// kFailedPrecondition when a limit's controller is not there; kInvalidArgument for values that
/// mean nothing.
Result<std::vector<ControlWrite>> plan_limits(const CgroupControllers& controllers,
                                              const CgroupNow& now, const CgroupLimits& limits);

/// Writes them; a failure puts back what was written before it.
Result<> apply_limits(const std::vector<ControlWrite>& writes);
/// Plans and applies the limits of a new cgroup.
Result<> write_limits(const std::vector<std::string>& dirs, const CgroupLimits& limits);

}  // namespace kuasar::os
