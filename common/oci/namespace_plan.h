#pragma once

#include <sys/types.h>

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
  std::optional<std::string> user;
  /// Pin of the PID namespace that this one container has asked for by TARGET.
  std::optional<std::string> target_pid;
  /// Also means the host's UTS namespace.
  bool host_network = false;
  bool host_ipc = false;
  bool host_pid = false;
  /// The pod has a user namespace of its own (mode POD).
  bool own_user = false;
};

/// Which PID namespace a container runs in.
enum class PidUse {
  /// A new one of its own.
  kContainer,
  /// The pod's shared one.
  kPod,
  /// The host's: the pod says so. "/proc/0/ns/pid" in a spec means this or kPod.
  kNode,
  /// That of another container of the pod.
  kTarget,
};

/// Reads the container's wish from its pid entry: no path means its own; /proc/0/ns/pid (what
/// containerd writes for a sandbox that reports pid 0) the pod's, or the host's where the pod has
/// that; /proc/<pid>/ns/pid another container's. No entry at all is refused, unless the pod has the
/// host's. Needs no pin yet: the caller makes the pod's PID namespace, or pins the target's, and
/// then calls apply().
Result<PidUse> classify_pid(const Spec& spec, const PodNamespaces& pod);

/// The pid of /proc/<pid>/ns/pid in the spec's pid entry: the process whose PID namespace is asked
/// for (TARGET). It may be anybody's by now: the caller finds out whose. 0: it asks for no such
/// one.
Result<pid_t> target_pid(const Spec& spec);

/// Rewrites linux.namespaces so that every entry is a pin of the pod or a new namespace, never a
/// /proc/<pid> path. An entry is removed only where the pod shares that very namespace with the
/// host (network and uts for host_network, ipc for host_ipc, pid for host_pid). Refused with the
/// entry's name: a pin that is missing, an entry that is missing (it would mean the host's
/// namespace; "user" where the pod has one of its own), a user entry where the pod has none, a path
/// other than containerd's /proc/0/ns/<kind> (but for TARGET), cgroup or mount with a path, an
/// unknown or repeated type. A refusal leaves the spec as it was.
Result<> apply(Spec& spec, const PodNamespaces& pod);

}  // namespace kuasar::oci
