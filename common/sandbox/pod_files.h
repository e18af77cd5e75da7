#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "os/namespaces.h"
#include "sandbox/pod_userns.h"
#include "sandbox/state_paths.h"

namespace runtime::v1 {
class PodSandboxConfig;
}

namespace kuasar::sandbox {

/// Size of a pod's /dev/shm in bytes; Kubernetes gives every pod this one.
inline constexpr std::uint64_t kShmSize = 64ULL << 20;

/// True when the pod lives in the host's network and, with it, in the host's UTS namespace.
bool uses_host_network(const runtime::v1::PodSandboxConfig& config);

/// True when the pod lives in the host's IPC or PID namespace.
bool uses_host_ipc(const runtime::v1::PodSandboxConfig& config);
bool uses_host_pid(const runtime::v1::PodSandboxConfig& config);

/// Refuses, by the full name of the field, modes of namespaces that a pod cannot have. Pure.
Result<> check_supported(const runtime::v1::PodSandboxConfig& config);

/// What a pod takes over from its host.
struct HostFiles {
  std::string hostname;
  std::string hosts;
  std::string resolv_conf;
};
/// Reads uname(2)'s node name, /etc/hosts and /etc/resolv.conf; a missing file is empty.
Result<HostFiles> read_host_files();

/// Contents of the pod's own files, as data.
struct PodFiles {
  /// For sethostname(2); the host's own name with the host network.
  std::string hostname;
  std::string hostname_file;
  std::string hosts_file;
  std::string resolv_conf_file;
};
/// Pure. Text that could not stand in such a file (control characters, a host name that is none)
/// is kInvalidArgument with the field's name.
Result<PodFiles> plan_pod_files(const runtime::v1::PodSandboxConfig& config, const HostFiles& host);
/// Size in bytes of the tmpfs that holds them: containers may write to them, and must not fill
/// anything else. Pure.
std::uint64_t pod_files_room(const PodFiles& files);
/// Writes the three files (0644) into the sandbox's directory of files, which must exist. They
/// belong to `root`, the host's ids of the pod's root, and have the SELinux label `label`, if any.
Result<> write_pod_files(const StatePaths& paths, const std::string& sandbox_id,
                         const PodFiles& files, const PodRoot& root, const std::string& label);

/// A bind mount to be added to a container's OCI spec.
struct InjectedMount {
  std::string destination;
  std::string source;
  std::vector<std::string> options;

  bool operator==(const InjectedMount&) const = default;
};
/// /etc/hostname, /etc/hosts, /etc/resolv.conf and, if the pod has one of its own (`own_shm`),
/// /dev/shm for one container; pure. What the spec mounts itself (`destinations`, as they stand
/// there) is left out, except that a tmpfs on /dev/shm, the default of an OCI spec, is the caller's
/// to drop first. The files are read-only in a container with a read-only rootfs.
std::vector<InjectedMount> plan_pod_mounts(const StatePaths& paths, const std::string& sandbox_id,
                                           const std::set<std::string>& destinations,
                                           bool readonly_rootfs, bool own_shm);

/// Kernel settings of a pod by the namespace that they belong to; absolute paths.
struct SysctlPlan {
  std::vector<os::Sysctl> net;
  std::vector<os::Sysctl> ipc;
  std::vector<os::Sysctl> uts;
};
/// Sorts linux.sysctls and adds the two defaults (`defaults_on`; never with the host network):
/// net.ipv4.ip_unprivileged_port_start=0 and, unless the pod has a user namespace,
/// net.ipv4.ping_group_range. Explicit values win. A name outside of the pod's namespaces, a
/// malformed name or value: kInvalidArgument with the name. Pure.
Result<SysctlPlan> plan_sysctls(const runtime::v1::PodSandboxConfig& config, bool defaults_on);

}  // namespace kuasar::sandbox
