#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace kuasar::os {

/// Where one controller of a container is found. An empty dir: nowhere.
struct ControllerDir {
  std::string dir;
  /// The files are those of cgroup v2.
  bool v2 = false;

  explicit operator bool() const { return !dir.empty(); }
  std::string file(std::string_view name) const;
  bool operator==(const ControllerDir&) const = default;
};

/// The directories of one container (or pod) by controller. On a hybrid machine some are v1 and
/// some v2.
struct CgroupControllers {
  ControllerDir cpu;
  /// CPU time; on v2 the same as cpu.
  ControllerDir cpuacct;
  ControllerDir cpuset;
  ControllerDir memory;
  ControllerDir pids;
  ControllerDir io;
  ControllerDir hugetlb;
  ControllerDir freezer;
  bool operator==(const CgroupControllers&) const = default;
};

/// Looks at the files in the directories, one per hierarchy, as own_cgroups_of() names them: what
/// has the file of a controller has the controller. A v1 hierarchy that has it wins, since a
/// controller is in one hierarchy only (cgroups(7)); every v2 directory can freeze.
CgroupControllers find_controllers(const std::vector<std::string>& dirs);
/// The same of some controllers only: each costs a look or two on v1 where a hierarchy is mounted
/// under the names of its controllers, else one into every directory; hugetlb a walk through them.
using Controller = ControllerDir CgroupControllers::*;
CgroupControllers find_controllers(const std::vector<std::string>& dirs,
                                   std::initializer_list<Controller> wanted);
ControllerDir find_controller(const std::vector<std::string>& dirs, Controller wanted);

/// Writes a control file: one write(2), no truncation. The error names the file and the value.
Result<> write_control(const std::string& path, std::string_view value);
/// The content without white space at its end.
Result<std::string> read_control(const std::string& path);

/// The number in a file of one line; "max" is UINT64_MAX. Absent when it is no number.
std::optional<std::uint64_t> parse_control_number(std::string_view text);
/// The same of a file; absent also when there is none.
std::optional<std::uint64_t> read_control_number(const std::string& path);

/// A value of a file of lines "key value" (memory.stat, cpu.stat, memory.events).
std::optional<std::uint64_t> keyed_value(std::string_view text, std::string_view key);

}  // namespace kuasar::os
