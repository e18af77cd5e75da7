#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "os/cgroup_limits.h"

namespace kuasar::os {

/// The unit that an OCI runtime with the systemd driver makes for a cgroupsPath
/// "slice:prefix:name": "<prefix>-<name>.scope", or the name itself when it is a slice. Empty for a
/// cgroupfs path.
std::string systemd_unit_of(const std::string& cgroups_path);

/// The slice of such a cgroupsPath; system.slice where it names none.
std::string slice_of(const std::string& cgroups_path);
/// Where its cgroup is, below the roots of the hierarchies; a cgroupfs path comes back as it is.
std::string cgroup_path_of(const std::string& cgroups_path);

/// One property of a unit as the manager's D-Bus interface takes it: t, ay, b, s or au.
struct UnitProperty {
  std::string name;
  std::variant<std::uint64_t, std::vector<std::uint8_t>, bool, std::string,
               std::vector<std::uint32_t>>
      value;
  bool operator==(const UnitProperty&) const = default;
};

/// What systemd has to be told beside the control files, so that it does not put its own values
/// back at the next `systemctl daemon-reload`. `v2` decides between its old and new names. Pure.
Result<std::vector<UnitProperty>> plan_unit_properties(const CgroupLimits& limits,
                                                       const CgroupNow& now, bool v2);

/// A list of CPUs or memory nodes ("0-3,8") as systemd's bit mask, the lowest in the first byte.
Result<std::vector<std::uint8_t>> cpu_mask(const std::string& list);

/// SetUnitProperties(unit, runtime = true) on the system bus; blocking, 5 s at most. No properties:
/// nothing. kFailedPrecondition when there is no systemd to talk to.
Result<> set_unit_properties(const std::string& unit, const std::vector<UnitProperty>& properties);

/// StartTransientUnit: a scope of `cgroups_path` with `pid` in it, whose cgroups are delegated to
/// us. systemd forgets it when its last process has ended, however that was. Ends when systemd has
/// moved the process; blocking, 5 s at most. Errors as above; kUnavailable when the job fails.
Result<> start_scope(const std::string& cgroups_path, pid_t pid,
                     std::vector<UnitProperty> properties);

}  // namespace kuasar::os
