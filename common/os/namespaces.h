#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// A kernel setting: a path below /proc/sys and the value to write.
struct Sysctl {
  std::string path;
  std::string value;
};

/// What a pod's own IPC and UTS namespaces shall be, as data.
struct PodNamespacePlan {
  /// File to pin the new IPC namespace on; empty keeps the host's.
  std::string ipc_pin;
  /// File to pin the new UTS namespace on; empty keeps the host's (host network, T32).
  std::string uts_pin;
  /// The pins are there already (a pod with a user namespace): they are set up only.
  bool made = false;
  std::string hostname;
  /// Written inside the new IPC and UTS namespaces.
  std::vector<Sysctl> sysctls;
  /// CRI's network namespace for net_sysctls; must be set when there are any.
  std::string netns_path;
  std::vector<Sysctl> net_sysctls;
};

/// Makes the namespaces, sets them up and pins them, all in one thread that ends: no process is
/// started and this process stays in its own. A failure leaves no pin. Blocking.
Result<> make_pod_namespaces(const PodNamespacePlan& plan);

/// Pins the namespace `kind` ("pid", "net"...) of a live process on `pin`. The caller makes sure
/// that the pid is still the one it means (by a pidfd or because it is an unreaped child).
Result<> pin_process_namespace(pid_t pid, const std::string& kind, const std::string& pin);

/// Opens the user namespace that owns the namespace at `path` (ioctl_ns(2), NS_GET_USERNS).
/// kFailedPrecondition when that is this process's own.
Result<UniqueFd> open_owning_user_namespace(const std::string& path);

/// Takes a pin away, the file included. Not there: success.
Result<> remove_pin(const std::string& pin);

/// True when `path` is a namespace file (statfs NSFS_MAGIC) and can be joined.
bool is_namespace_pin(const std::string& path);

}  // namespace kuasar::os
