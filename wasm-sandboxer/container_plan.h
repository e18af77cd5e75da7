#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "oci/spec.h"
#include "os/cgroup_limits.h"
#include "os/mount.h"
#include "worker/plan.h"

namespace kuasar::wasm {

/// A mount of a container that the daemon makes and the child moves to its place.
struct MountStep {
  os::MountPlan plan;
  /// /dev: a tmpfs with a few devices.
  bool devices = false;
  bool recursive_readonly = false;
  /// The owners of its files are mapped into the pod's user namespace.
  bool idmapped = false;
  std::string target;
};

/// A container before anything of it exists: its spec in the terms of the worker. The plan has no
/// descriptors yet.
struct ContainerBlueprint {
  Plan plan;
  std::vector<MountStep> mounts;
  /// Paths of the namespaces to join: network, ipc, uts; none where the pod has the host's.
  std::vector<std::string> namespaces;
  /// Empty: the host's.
  std::string user_namespace;
  /// Empty: one of its own, or with `host_pid` the host's.
  std::string pid_namespace;
  bool host_pid = false;
  /// Of either cgroup driver. Empty: the sandboxer's own.
  std::string cgroups_path;
  os::CgroupLimits limits;
  std::optional<int> oom_score_adj;
};

/// Reads a spec whose namespaces have been rewritten (oci/namespace_plan.h). What a WebAssembly
/// module has no use for and could only misuse is left out: /proc, /sys, /dev/pts, /dev/mqueue, the
/// masked paths below them, capabilities, the seccomp profile (the worker's own is tighter).
/// Refused with the field's name: hooks, devices, mounts of other types. Pure.
Result<ContainerBlueprint> plan_container(const oci::Spec& spec);

/// The plan of a process that is added to a container, from an OCI Process as JSON. Pure.
Result<Plan> plan_process(const std::string& json);

}  // namespace kuasar::wasm
