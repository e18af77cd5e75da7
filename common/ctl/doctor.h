#pragma once

#include <sys/types.h>

#include <boost/json/value.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "ctl/containerd_config.h"

// What `kuasar-ctl doctor` looks at. Every check is a function of a text, or of a tree that stands
// for "/": tests give it another.

namespace kuasar::ctl {

struct Finding {
  enum class Level { kOk, kWarn, kFail };
  Level level = Level::kOk;
  /// What was looked at, in a word or three.
  std::string check;
  std::string words;
  /// What to do about it; empty for kOk.
  std::string remedy;
};

/// The machine as the checks see it.
struct Probe {
  std::filesystem::path root = "/";
  /// Runs a program and returns what it printed; an error names why it did not end with 0.
  std::function<Result<std::string>(const std::vector<std::string>& argv)> run;

  std::filesystem::path at(std::string_view absolute) const;
  /// The first executable of that name in a list like PATH's, as a path of the machine itself.
  std::string find(const std::string& name, std::string_view path) const;
};

// The host.
Finding check_root(uid_t uid);
/// `release` is uname(2)'s, e.g. "6.1.0-18-amd64".
std::vector<Finding> check_kernel(const std::string& release);
Finding check_cgroups(const Probe& probe);
Finding check_run_dir(const Probe& probe);
Finding check_oom_score(const Probe& probe);
/// `kinds`: "runc" for runc-sandboxer. Nothing where systemd does not run.
std::vector<Finding> check_units(const Probe& probe, const std::vector<std::string>& kinds);
/// The OCI runtimes that are found, with their versions.
std::vector<Finding> check_runtimes(const Probe& probe, std::string_view path);

// containerd.

/// Where a containerd is and how it was started.
struct ContainerdProcess {
  /// 0: none runs.
  pid_t pid = 0;
  std::string program;
  std::string config = "/etc/containerd/config.toml";
  std::string path;
};
/// From its /proc; `pid` 0 gives the defaults.
ContainerdProcess inspect_containerd(const Probe& probe, pid_t pid, const std::string& own_path);

/// `output` is that of `containerd --version`.
Finding check_containerd_version(const std::string& output);
/// T6: it looks for the shim of runtime_type when it restarts.
Finding check_shim(const Probe& probe, std::string_view path);
/// The handlers of one sandboxer, which listens on `socket`.
std::vector<Finding> check_handlers(const ContainerdConfig& config, const std::string& socket);
/// With no CAP_SYS_RESOURCE it cannot lower oom_score_adj either.
std::vector<Finding> check_oom_setting(const ContainerdConfig& config, bool may_lower);
bool may_lower_oom_score(const Probe& probe);

/// A process by the name that a message gives it.
struct NamedPid {
  std::string name;
  pid_t pid = 0;
};
/// All must share one mount namespace.
Finding check_mount_namespaces(const Probe& probe, const std::vector<NamedPid>& processes);

// The report.
std::string report_text(const std::vector<Finding>& findings);
boost::json::value report_json(const std::vector<Finding>& findings);
bool any_failed(const std::vector<Finding>& findings);

}  // namespace kuasar::ctl
