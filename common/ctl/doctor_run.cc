#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "ctl/commands.h"
#include "ctl/config_check.h"
#include "ctl/daemons.h"
#include "ctl/doctor_parts.h"
#include "ctl/print.h"
#include "ctl/views.h"

namespace kuasar::ctl {
namespace {

constexpr const char* kContainerdSocket = "/run/containerd/containerd.sock";

void append(std::vector<Finding>& all, std::vector<Finding> more) {
  for (Finding& one : more) all.push_back(std::move(one));
}

std::vector<Finding> check_host(const Probe& probe) {
  utsname names{};
  ::uname(&names);
  std::vector<Finding> all{check_root(::geteuid())};
  append(all, check_kernel(names.release));
  all.push_back(check_cgroups(probe));
  all.push_back(check_run_dir(probe));
  all.push_back(check_oom_score(probe));
  return all;
}

Finding check_daemon(const DaemonHealth& daemon) {
  const std::vector<std::string> findings = findings_of(daemon);
  const std::string name = daemon.error.empty() ? daemon.health.name() : daemon.socket;
  if (findings.empty()) {
    return ok(name, fmt::format("answers on {}, version {}, keeper {}", daemon.socket,
                                daemon.health.version(), daemon.health.keeper_version()));
  }
  std::string words = findings[0];
  if (findings.size() > 1) words += fmt::format(" (and {} more)", findings.size() - 1);
  return bad(name, words, "\"kuasar-ctl health\" says all, the daemon's log says why");
}

std::vector<Finding> check_containerd(const Probe& probe, const Args& args,
                                      const ContainerdProcess& containerd,
                                      const std::string& socket,
                                      const std::vector<std::string>& listen) {
  if (containerd.program.empty()) {
    return {bad("containerd", fmt::format("nobody listens on {}, and it is not in PATH", socket),
                "install containerd 2.1 or later, or name its socket with --containerd")};
  }
  std::vector<Finding> all;
  if (containerd.pid == 0) {
    all.push_back(warn("containerd", fmt::format("does not run: nobody listens on {}", socket),
                       "start it after the sandboxer, or name its socket with --containerd"));
  }
  const Result<std::string> version = probe.run({containerd.program, "--version"});
  if (!version) {
    all.push_back(bad("containerd", version.error().message, "install it anew"));
  } else {
    all.push_back(check_containerd_version(*version));
  }
  all.push_back(check_shim(probe, containerd.path));
  const std::string file =
      args.containerd_config.empty() ? containerd.config : args.containerd_config;
  const Result<std::string> dump =
      probe.run({containerd.program, "--config", file, "config", "dump"});
  if (!dump) {
    all.push_back(bad("containerd's configuration", dump.error().message,
                      "correct it, or name another file with --containerd-config"));
    return all;
  }
  const Result<ContainerdConfig> config = parse_containerd_config(*dump);
  if (!config) {
    all.push_back(
        warn("containerd's configuration",
             fmt::format("its dump of {} is not understood: {}", file, config.error().message),
             "compare it with the suite's drop-in by eye"));
    return all;
  }
  for (const std::string& one : listen) append(all, check_handlers(*config, one));
  append(all, check_oom_setting(*config, may_lower_oom_score(probe)));
  return all;
}

std::vector<DaemonHealth> ask_daemons(const Args& args) {
  std::vector<DaemonHealth> all;
  for (const std::string& socket : args.sockets.empty() ? find_sockets("/run") : args.sockets) {
    all.push_back(ask_health(socket));
  }
  return all;
}

}  // namespace

Result<int> run_doctor(const Args& args) {
  const Probe probe{"/", [](const std::vector<std::string>& argv) { return output_of(argv); }};
  const char* own_path = std::getenv("PATH");
  const std::string path = own_path != nullptr ? own_path : "";
  const std::vector<DaemonHealth> daemons = ask_daemons(args);
  std::string socket = args.containerd;
  for (const DaemonHealth& daemon : daemons) {
    if (socket.empty()) socket = daemon.health.containerd();
  }
  if (socket.empty()) socket = kContainerdSocket;
  const ContainerdProcess containerd = inspect_containerd(probe, listener_of(socket), path);

  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  std::vector<std::string> kinds;
  for (const Sandboxer& one : find_sandboxers(probe, self.parent_path().native(), path)) {
    kinds.push_back(one.kind);
  }
  std::vector<Finding> all = check_host(probe);
  append(all, check_runtimes(probe, path));
  std::vector<NamedPid> processes{{"containerd", containerd.pid}};
  std::vector<std::string> listen;
  if (daemons.empty()) {
    all.push_back(bad("sandboxers", "none answers on /run/kuasar-*/ctl.sock",
                      "start one, or name its directory with --dir"));
  }
  for (const DaemonHealth& daemon : daemons) {
    all.push_back(check_daemon(daemon));
    if (!daemon.error.empty()) continue;
    processes.push_back({daemon.health.name(), daemon.health.pid()});
    processes.push_back({"its keeper", daemon.health.keeper_pid()});
    listen.push_back(daemon.health.listen());
  }
  // Nobody says where they will listen: where they do by default.
  if (listen.empty()) {
    for (const std::string& kind : kinds) {
      listen.push_back(fmt::format("/run/{}-sandboxer.sock", kind));
    }
  }
  append(all, check_containerd(probe, args, containerd, socket, listen));
  all.push_back(check_mount_namespaces(probe, processes));
  append(all, check_units(probe, kinds));
  fmt::print("{}", args.json ? pretty(report_json(all)) : report_text(all));
  return any_failed(all) ? 1 : 0;
}

}  // namespace kuasar::ctl
