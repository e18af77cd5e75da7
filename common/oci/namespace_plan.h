#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "oci/spec.h"

namespace kuasar::oci {

/// What a pod offers to its containers. The paths are pins (or CRI's netns) that exist and that
/// the caller has verified; an absent one is not available. The host_* flags say that
/// PodSandboxConfig has NODE for exactly that namespace.
struct PodNamespaces {
  std::optional<std::string> net;
  std::optional<std::string> ipc;
  std::optional<std::string> uts;
  std::optional<std::string> pid;
  /// Also means the host's UTS namespace.
  bool host_network = false;
  bool host_ipc = false;
  bool host_pid = false;
};

/// Which PID namespace a container runs in.
enum class PidUse {
  /// A new one of its own.
  kContainer,
  /// The pod's shared one.
  kPod,
};

/// Reads the container's wish from its pid entry: no path means its own, /proc/0/ns/pid (what
/// containerd writes for a sandbox that reports pid 0) the pod's. Another process's namespace
/// (TARGET), no entry at all, and the host's (NODE: `pod.host_pid` with the pod's path) are refused
/// as kUnimplemented with the name of the CRI field. Needs no pin yet: the caller makes the pod's
/// PID namespace when the answer is kPod, then calls apply().
Result<PidUse> classify_pid(const Spec& spec, const PodNamespaces& pod);

/// Rewrites linux.namespaces so that every entry is a pin of the pod or a new namespace, never a
/// /proc/<pid> path. An entry is removed only where the pod shares that very namespace with the
/// host (network and uts for host_network). Refused with the entry's name: a pin that is missing,
/// an entry that is missing (it would mean the host's namespace), a path other than containerd's
/// /proc/0/ns/<kind>, a user namespace, cgroup or mount with a path, an unknown or repeated type.
/// A refusal leaves the spec as it was.
Result<> apply(Spec& spec, const PodNamespaces& pod);

}  // namespace kuasar::oci
