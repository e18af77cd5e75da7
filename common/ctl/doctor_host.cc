#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "base/files.h"
#include "ctl/doctor_parts.h"
#include "os/cgroup.h"

namespace kuasar::ctl {
namespace {

constexpr std::size_t kMaxProcFile = 1U << 20;

std::string text_of(const std::filesystem::path& file) {
  return read_file(file, kMaxProcFile).value_or("");
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

/// The type of what is mounted on a directory last (proc(5), mountinfo); empty when nothing is.
std::string mounted_type(const std::string& mountinfo, const std::string& target) {
  std::istringstream lines(mountinfo);
  std::string line;
  std::string type;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string skip;
    std::string point;
    for (int i = 0; i < 4; ++i) fields >> skip;
    fields >> point;
    while (fields >> skip && skip != "-") {
    }
    if (point == target) fields >> type;
  }
  return type;
}

bool is_there(const std::filesystem::path& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0;
}

std::filesystem::path unit_file(const Probe& probe, const std::string& unit) {
  for (const char* dir :
       {"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system", "/lib/systemd/system"}) {
    const std::filesystem::path file = probe.at(dir) / unit;
    if (is_there(file)) return file;
  }
  return {};
}

/// Whether a line "<key>=... word ..." is there.
bool unit_says(const std::string& text, const std::string& key, const std::string& word) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with(key + "=")) continue;
    std::istringstream words(line.substr(key.size() + 1));
    std::string one;
    while (words >> one) {
      if (one == word) return true;
    }
  }
  return false;
}

}  // namespace

Finding check_root(uid_t uid) {
  if (uid == 0) return ok("root", "yes");
  return bad("root", fmt::format("running with uid {}", uid),
             "run it as root: sandboxers and their sockets belong to root, and much of what is "
             "looked at cannot be seen by others");
}

std::vector<Finding> check_kernel(const std::string& release) {
  int major = 0;
  int minor = 0;
  if (std::sscanf(release.c_str(), "%d.%d", &major, &minor) != 2) {
    return {warn("kernel", fmt::format("\"{}\" is no version that is understood", release),
                 "compare it with docs/CTL.md by eye")};
  }
  const auto before = [&](int a, int b) { return major < a || (major == a && minor < b); };
  // openat2(2) 5.6, pidfd_open(2) 5.3.
  if (before(5, 6)) {
    return {bad("kernel", fmt::format("{} lacks openat2 and pidfd_open", release),
                "boot Linux 5.6 or later")};
  }
  std::vector<Finding> all;
  if (before(5, 14)) {
    all.push_back(warn("kernel", fmt::format("{} has no cgroup.kill", release),
                       "Linux 5.14 ends a container's processes in one step; here they are "
                       "signalled one by one"));
  }
  // mount_setattr(2) 5.12; of overlayfs 5.19.
  if (before(5, 19)) {
    all.push_back(warn("kernel", fmt::format("{} has no idmapped mounts of overlayfs", release),
                       "Linux 5.19 is needed for pods with a user namespace"));
  }
  if (before(6, 15)) {
    all.push_back(warn("kernel", fmt::format("{} has no PIDFD_INFO_EXIT", release),
                       "before Linux 6.15 a container reports exit code 255 if its keeper is "
                       "killed while it runs (docs/RELIABILITY.md)"));
  }
  if (all.empty()) all.push_back(ok("kernel", release));
  return all;
}

Finding check_cgroups(const Probe& probe) {
  const std::string mountinfo = text_of(probe.at("/proc/self/mountinfo"));
  bool v1 = false;
  bool v2 = false;
  for (const os::CgroupHierarchy& one : os::parse_cgroup_mounts(mountinfo)) {
    (one.v2 ? v2 : v1) = true;
  }
  if (v2 && !v1) {
    const std::string controllers = text_of(probe.at("/sys/fs/cgroup/cgroup.controllers"));
    for (const char* wanted : {"cpu", "memory", "pids"}) {
      std::istringstream words(controllers);
      std::string one;
      bool found = false;
      while (words >> one) found = found || one == wanted;
      if (!found) {
        return warn("cgroups", fmt::format("version 2 without the controller {}", wanted),
                    "limits of that kind have no effect; see the kernel's command line "
                    "(cgroup_disable=)");
      }
    }
    return ok("cgroups", "version 2");
  }
  if (v1) return ok("cgroups", v2 ? "hybrid: version 1, with version 2 beside it" : "version 1");
  return bad("cgroups", "none are mounted",
             "mount the cgroup2 file system on /sys/fs/cgroup; without it no limit works and a "
             "container's processes cannot be found");
}

Finding check_run_dir(const Probe& probe) {
  const std::string type = mounted_type(text_of(probe.at("/proc/self/mountinfo")), "/run");
  if (type == "tmpfs") return ok("/run", "a tmpfs");
  return warn(
      "/run",
      type.empty() ? "on the root file system" : fmt::format("a file system of type {}", type),
      "the sandboxers mount a tmpfs on their own directories; of containerd's state see "
      "that it does not survive a reboot");
}

bool may_lower_oom_score(const Probe& probe) {
  // capabilities(7): CAP_SYS_RESOURCE is number 24.
  constexpr unsigned kSysResource = 24;
  std::istringstream lines(text_of(probe.at("/proc/self/status")));
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with("CapEff:")) continue;
    const unsigned long long effective = std::strtoull(line.c_str() + 7, nullptr, 16);
    return ((effective >> kSysResource) & 1U) != 0;
  }
  return false;
}

Finding check_oom_score(const Probe& probe) {
  if (may_lower_oom_score(probe)) return ok("oom_score_adj", "may be lowered");
  return warn("oom_score_adj", "cannot be lowered: CAP_SYS_RESOURCE is missing",
              "give it to containerd and the sandboxers; without it guaranteed pods are not "
              "protected from the OOM killer");
}

std::vector<Finding> check_units(const Probe& probe, const std::vector<std::string>& kinds) {
  std::vector<Finding> all;
  if (!is_there(probe.at("/run/systemd/system"))) return all;
  for (const std::string& kind : kinds) {
    const std::string unit = kind + "-sandboxer.service";
    const std::filesystem::path file = unit_file(probe, unit);
    if (file.empty()) {
      all.push_back(warn(unit, "is not installed",
                         "install the suite's units, or see to it that the sandboxer starts before "
                         "containerd"));
      continue;
    }
    const std::string text = text_of(file);
    if (!unit_says(text, "Before", "containerd.service")) {
      all.push_back(bad(unit, "does not start before containerd.service",
                        "add Before=containerd.service: a containerd that starts first shows the "
                        "sandboxer's pods NOTREADY for good"));
    } else if (!is_there(probe.at("/etc/systemd/system/multi-user.target.wants") / unit)) {
      all.push_back(warn(unit, "does not start at boot", "systemctl enable " + unit));
    } else {
      all.push_back(ok(unit, "starts at boot, before containerd"));
    }
    for (const char* key : {"PrivateTmp", "PrivateMounts", "ProtectSystem", "PrivateDevices"}) {
      if (text.find(fmt::format("\n{}=", key)) == std::string::npos) continue;
      all.push_back(bad(unit, fmt::format("{}= gives it a mount namespace of its own", key),
                        "remove the line: it must share containerd's"));
    }
  }
  return all;
}

std::vector<Finding> check_runtimes(const Probe& probe, std::string_view path) {
  std::vector<Finding> all;
  for (const std::string name : {"runc", "crun", "youki"}) {
    const std::string program = probe.find(name, path);
    if (program.empty()) continue;
    const Result<std::string> version = probe.run({program, "--version"});
    if (version) {
      all.push_back(ok(name, fmt::format("{}: {}", program, first_line(*version))));
    } else {
      all.push_back(bad(name, fmt::format("{} does not run: {}", program, version.error().message),
                        "install it anew, with the libraries that it needs"));
    }
  }
  if (all.empty()) {
    all.push_back(bad("OCI runtime", "neither runc, crun nor youki is in PATH",
                      "install runc, or name one with `runtime` in the sandboxer's configuration"));
  }
  return all;
}

}  // namespace kuasar::ctl
