#include <algorithm>
#include <map>
#include <string_view>

#include "cri/runtime/v1/api.pb.h"
#include "sandbox/pod_files.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

constexpr std::string_view kUnprivilegedPorts = "net/ipv4/ip_unprivileged_port_start";
constexpr std::string_view kPingGroups = "net/ipv4/ping_group_range";

// A write below /proc/sys must arrive whole and in one piece: the kernel takes a page.
constexpr std::size_t kMaxValue = 4095;
constexpr std::size_t kMaxName = 255;

bool name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-' ||
         c == '/';
}

// The path below /proc/sys, after sysctl(8): the first separator tells whether '.' or '/' parts
// the components, and the other one is then a character of a component (an interface "eth0.7").
Result<std::string> sysctl_path(const std::string& name) {
  const auto malformed = [](std::string_view why) {
    return fail(Code::kInvalidArgument, "linux.sysctls: a name is malformed: {}", why);
  };
  if (name.empty()) return malformed("it is empty");
  if (name.size() > kMaxName) return malformed("it is longer than 255 bytes");
  if (!std::all_of(name.begin(), name.end(), name_character)) {
    return malformed("it has a character outside [a-z0-9._/-]");
  }
  std::string path = name;
  const std::size_t separator = name.find_first_of("./");
  if (separator != std::string::npos && name[separator] == '.') {
    for (char& c : path) c = c == '.' ? '/' : c == '/' ? '.' : c;
  }
  std::string_view rest = path;
  for (;;) {
    const std::size_t slash = rest.find('/');
    const std::string_view component = rest.substr(0, slash);
    if (component.empty() || component == "." || component == "..") {
      return fail(Code::kInvalidArgument, "linux.sysctls: the name {} is malformed", name);
    }
    if (slash == std::string_view::npos) return path;
    rest.remove_prefix(slash + 1);
  }
}

Result<> check_value(const std::string& name, const std::string& value) {
  const bool clean = std::all_of(value.begin(), value.end(), [](char c) {
    return c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  });
  if (!clean || value.size() > kMaxValue) {
    return fail(Code::kInvalidArgument,
                "linux.sysctls: the value of {} must be one line of at most {} bytes", name,
                kMaxValue);
  }
  return {};
}

enum class Scope { kNet, kIpc, kUts, kHostname, kHost };

// Which namespace a setting belongs to (namespaces(7), ipc_namespaces(7), uts_namespaces(7)).
Scope scope_of(std::string_view path) {
  if (path.starts_with("net/")) return Scope::kNet;
  if (path.starts_with("fs/mqueue/")) return Scope::kIpc;
  constexpr std::string_view kKernel = "kernel/";
  if (path.starts_with(kKernel)) {
    const std::string_view name = path.substr(kKernel.size());
    if (name.find('/') != std::string_view::npos) return Scope::kHost;
    // runc's list (libcontainer/configs/validate): others are not of the IPC namespace, or, as
    // shm_next_id, say more about the host than about the pod.
    for (const std::string_view ipc :
         {"msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"}) {
      if (name == ipc) return Scope::kIpc;
    }
    if (name == "domainname") return Scope::kUts;
    if (name == "hostname") return Scope::kHostname;
  }
  return Scope::kHost;
}

}  // namespace

Result<SysctlPlan> plan_sysctls(const cri::PodSandboxConfig& config, bool defaults_on) {
  const bool host_network = uses_host_network(config);
  // Sorted, so that the same pod gives the same plan.
  std::map<std::string, std::string> settings;
  for (const auto& [name, value] : config.linux().sysctls()) {
    TRY(const std::string path, sysctl_path(name));
    // containerd's own pods pass over it.
    if (value.empty()) continue;
    CHECK_OK(check_value(name, value));
    switch (scope_of(path)) {
      case Scope::kNet:
      case Scope::kUts:
        if (host_network) {
          return fail(Code::kInvalidArgument,
                      "linux.sysctls: {} would change the host, whose network the pod uses", name);
        }
        break;
      case Scope::kIpc:
        if (uses_host_ipc(config)) {
          return fail(Code::kInvalidArgument,
                      "linux.sysctls: {} would change the host, whose IPC namespace the pod uses",
                      name);
        }
        break;
      case Scope::kHostname:
        return fail(Code::kInvalidArgument,
                    "linux.sysctls: {} is refused, a pod's host name is set by the field hostname",
                    name);
      case Scope::kHost:
        return fail(Code::kInvalidArgument,
                    "linux.sysctls: {} belongs to no namespace of a pod and would change the host",
                    name);
    }
    if (!settings.emplace(path, value).second) {
      return fail(Code::kInvalidArgument, "linux.sysctls: {} is given twice", name);
    }
  }

  if (defaults_on && !host_network) {
    settings.emplace(kUnprivilegedPorts, "0");
    const cri::NamespaceOption& options = config.linux().security_context().namespace_options();
    // In a user namespace most of this range is unmapped and the write would fail.
    const bool user_namespace =
        options.has_userns_options() && options.userns_options().mode() != cri::NODE;
    if (!user_namespace) settings.emplace(kPingGroups, "0 2147483647");
  }

  SysctlPlan plan;
  for (const auto& [path, value] : settings) {
    const Scope scope = scope_of(path);
    std::vector<os::Sysctl>& target = scope == Scope::kNet   ? plan.net
                                      : scope == Scope::kUts ? plan.uts
                                                             : plan.ipc;
    target.push_back({"/proc/sys/" + path, value});
  }
  return plan;
}

}  // namespace kuasar::sandbox
