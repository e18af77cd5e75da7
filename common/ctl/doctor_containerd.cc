#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/files.h"
#include "ctl/doctor_parts.h"

namespace kuasar::ctl {
namespace {

constexpr const char* kRuntimeType = "io.containerd.runc.v2";
constexpr const char* kShim = "containerd-shim-runc-v2";
constexpr std::size_t kMaxProcFile = 1U << 20;

/// The strings of /proc/PID/cmdline or environ, each with its NUL.
std::vector<std::string> strings_of(const std::filesystem::path& file) {
  std::vector<std::string> all;
  const std::string text = read_file(file, kMaxProcFile).value_or("");
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    all.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return all;
}

std::string link_of(const std::filesystem::path& link) {
  std::error_code ec;
  return std::filesystem::read_symlink(link, ec).native();
}

std::string handler_name(const ContainerdConfig::Handler& handler) {
  return fmt::format("handler {}", handler.name);
}

std::vector<Finding> check_handler(const ContainerdConfig::Handler& handler) {
  std::vector<Finding> all;
  const std::string name = handler_name(handler);
  if (handler.runtime_type != kRuntimeType) {
    // T5: with options and any other type StartContainer fails.
    all.push_back(
        bad(name,
            fmt::format("runtime_type is \"{}\"{}", handler.runtime_type,
                        handler.has_options ? ", and there is a table of options" : ""),
            fmt::format("set runtime_type = \"{}\": with another type containerd does not ask the "
                        "OCI runtime for its features, and with options no container starts",
                        kRuntimeType)));
  }
  if (handler.io_type == "streaming") {
    all.push_back(bad(name, "io_type is \"streaming\"",
                      "remove io_type: the sandboxer writes to FIFOs only"));
  }
  if (all.empty()) all.push_back(ok(name, fmt::format("sandboxer {}", handler.sandboxer)));
  return all;
}

}  // namespace

ContainerdProcess inspect_containerd(const Probe& probe, pid_t pid, const std::string& own_path) {
  ContainerdProcess found;
  found.pid = pid;
  found.path = own_path;
  if (pid > 0) {
    const std::filesystem::path proc = probe.at("/proc") / std::to_string(pid);
    found.program = link_of(proc / "exe");
    const std::vector<std::string> argv = strings_of(proc / "cmdline");
    for (std::size_t i = 1; i < argv.size(); ++i) {
      for (const std::string flag : {"--config", "-c"}) {
        if (argv[i] == flag && i + 1 < argv.size()) found.config = argv[i + 1];
        if (argv[i].starts_with(flag + "=")) found.config = argv[i].substr(flag.size() + 1);
      }
    }
    for (const std::string& variable : strings_of(proc / "environ")) {
      if (variable.starts_with("PATH=")) found.path = variable.substr(5);
    }
  }
  if (found.program.empty()) found.program = probe.find("containerd", found.path);
  return found;
}

Finding check_containerd_version(const std::string& output) {
  // "containerd github.com/containerd/containerd/v2 2.1.9 <revision>", perhaps with "v2.1.9".
  const std::string line = output.substr(0, output.find('\n'));
  for (std::size_t begin = 0; begin < line.size();) {
    const std::size_t end = std::min(line.find(' ', begin), line.size());
    std::string word = line.substr(begin, end - begin);
    begin = end + 1;
    if (word.starts_with('v')) word.erase(0, 1);
    int major = 0;
    int minor = 0;
    if (std::sscanf(word.c_str(), "%d.%d", &major, &minor) != 2) continue;
    if (major > 2 || (major == 2 && minor >= 1)) return ok("containerd", word);
    return bad("containerd", fmt::format("version {}", word),
               "install 2.1 or later: earlier ones have no sandbox plugins, or other ones");
  }
  return warn("containerd", fmt::format("\"{}\" names no version that is understood", line),
              "see that it is 2.1 or later");
}

Finding check_shim(const Probe& probe, std::string_view path) {
  const std::string found = probe.find(kShim, path);
  if (!found.empty()) return ok(kShim, found);
  return bad(kShim, "is not in containerd's PATH",
             "install it where containerd finds it (it comes with containerd): no pod of ours runs "
             "it, but a containerd that restarts without it forgets running containers");
}

std::vector<Finding> check_handlers(const ContainerdConfig& config, const std::string& socket) {
  const std::string check = "proxy plugin";
  const std::string drop_in =
      "put the suite's drop-in (share/kuasar/containerd) where config.toml imports it, and restart "
      "containerd";
  const auto proxy = std::find_if(
      config.proxies.begin(), config.proxies.end(),
      [&](const auto& one) { return one.address == socket || one.address == "unix://" + socket; });
  if (proxy == config.proxies.end()) {
    return {bad(check, fmt::format("containerd knows none at {}", socket), drop_in)};
  }
  if (proxy->type != "sandbox") {
    return {bad(check, fmt::format("{} is of type \"{}\"", proxy->name, proxy->type),
                "set type = \"sandbox\"")};
  }
  std::vector<Finding> all{ok(check, fmt::format("{} at {}", proxy->name, socket))};
  bool used = false;
  for (const ContainerdConfig::Handler& handler : config.handlers) {
    if (handler.sandboxer != proxy->name) continue;
    used = true;
    for (Finding& one : check_handler(handler)) all.push_back(std::move(one));
  }
  if (!used) {
    all.push_back(
        bad("handler", fmt::format("no runtime has sandboxer = \"{}\"", proxy->name), drop_in));
  }
  return all;
}

std::vector<Finding> check_oom_setting(const ContainerdConfig& config, bool may_lower) {
  if (may_lower || config.restrict_oom_score_adj) return {};
  return {bad("restrict_oom_score_adj", "is false, and oom_score_adj cannot be lowered here",
              "set restrict_oom_score_adj = true in [plugins.'io.containerd.cri.v1.runtime']: "
              "otherwise containers that ask for a lower one do not start")};
}

Finding check_mount_namespaces(const Probe& probe, const std::vector<NamedPid>& processes) {
  std::string first;
  std::string first_name;
  std::string names;
  for (const NamedPid& process : processes) {
    if (process.pid <= 0) continue;
    const std::string link =
        link_of(probe.at("/proc") / std::to_string(process.pid) / "ns" / "mnt");
    if (link.empty()) continue;
    names += (names.empty() ? "" : ", ") + process.name;
    if (first.empty()) {
      first = link;
      first_name = process.name;
    } else if (link != first) {
      return bad("mount namespace",
                 fmt::format("{} (pid {}) and {} have different ones", process.name, process.pid,
                             first_name),
                 "start them in the same one: no ProtectSystem=, PrivateTmp= and the like in their "
                 "units, no container around one of them");
    }
  }
  if (names.empty()) {
    return warn("mount namespace", "nobody is there to be compared", "start the sandboxer");
  }
  return ok("mount namespace", "the same for " + names);
}

}  // namespace kuasar::ctl
