#include "bench/cpu_meter.h"

#include <algorithm>

#include "base/files.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"

namespace kuasar::bench {
namespace {

// Where the CPU time of a process is counted; the root of a hierarchy is no such place.
Result<os::ControllerDir> accounting_of(const std::string& process) {
  TRY(const std::string mounts, read_file("/proc/self/mountinfo"));
  TRY(const std::string own, read_file("/proc/" + process + "/cgroup"));
  const auto dirs = os::join_cgroups(os::parse_cgroup_mounts(mounts), os::parse_proc_cgroup(own));
  return os::find_controller(dirs, &os::CgroupControllers::cpuacct);
}

bool at_or_below(const std::string& dir, const std::string& top) {
  return dir == top || dir.starts_with(top + "/");
}

}  // namespace

Result<CpuMeter> CpuMeter::of(const std::vector<pid_t>& pids) {
  TRY(const os::ControllerDir ours, accounting_of("self"));
  std::vector<os::ControllerDir> dirs;
  for (const pid_t pid : pids) {
    TRY(os::ControllerDir dir, accounting_of(std::to_string(pid)));
    if (!dir) {
      return fail(Code::kNotFound,
                  "process {} is in no cgroup that counts CPU time (cpuacct or cpu.stat)", pid);
    }
    if (at_or_below(ours.dir, dir.dir)) {
      return fail(
          Code::kFailedPrecondition,
          "process {} and this program live in one cgroup ({}): its CPU time cannot be told "
          "from ours; run containerd and the daemons as units of systemd",
          pid, dir.dir);
    }
    dirs.push_back(std::move(dir));
  }
  CpuMeter meter;
  for (std::size_t i = 0; i < dirs.size(); ++i) {
    const auto covers = [&](const os::ControllerDir& other) {
      return other.dir != dirs[i].dir && at_or_below(dirs[i].dir, other.dir);
    };
    const bool repeated = std::find(dirs.begin(), dirs.begin() + static_cast<std::ptrdiff_t>(i),
                                    dirs[i]) != dirs.begin() + static_cast<std::ptrdiff_t>(i);
    if (repeated || std::any_of(dirs.begin(), dirs.end(), covers)) continue;
    const bool v2 = dirs[i].v2;
    meter.counters_.push_back({dirs[i].file(v2 ? "cpu.stat" : "cpuacct.usage"), v2});
  }
  return meter;
}

double CpuMeter::seconds() const {
  double sum = 0;
  for (const Counter& counter : counters_) {
    const std::string text = os::read_control(counter.file).value_or("");
    if (counter.v2) {
      sum += static_cast<double>(os::keyed_value(text, "usage_usec").value_or(0)) / 1e6;
    } else {
      sum += static_cast<double>(os::parse_control_number(text).value_or(0)) / 1e9;
    }
  }
  return sum;
}

}  // namespace kuasar::bench
