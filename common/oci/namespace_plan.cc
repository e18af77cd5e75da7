#include "oci/namespace_plan.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

namespace kuasar::oci {
namespace {

// CRI's name of what a container may choose, for messages (cri-api runtime/v1 NamespaceOption).
constexpr std::string_view kOptions = "linux.security_context.namespace_options";

// A type of linux.namespaces and the name of its file in /proc/<pid>/ns.
struct Kind {
  std::string_view type;
  std::string_view file;
};
constexpr Kind kNetwork{"network", "net"};
constexpr Kind kIpc{"ipc", "ipc"};
constexpr Kind kUts{"uts", "uts"};
constexpr Kind kPid{"pid", "pid"};
constexpr std::string_view kTypes[] = {"network", "ipc", "uts", "pid", "mount", "cgroup", "user"};

// One change of one entry: a new path, or its removal.
struct Change {
  std::string_view type;
  std::optional<std::string> path;
};

// What containerd writes for "the sandbox's" when the sandbox reports pid 0 (contract T24).
std::string sandbox_path(const Kind& kind) {
  return fmt::format("/proc/0/ns/{}", kind.file);
}

const NamespaceEntry* find(const std::vector<NamespaceEntry>& entries, std::string_view type) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const NamespaceEntry& e) { return e.type == type; });
  return found == entries.end() ? nullptr : &*found;
}

tl::unexpected<Error> missing_entry(std::string_view type) {
  return fail(Code::kInvalidArgument,
              "namespace {}: linux.namespaces has no such entry, which would give the container "
              "the host's",
              type);
}

Result<> check_types(const std::vector<NamespaceEntry>& entries) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string& type = entries[i].type;
    if (std::find(std::begin(kTypes), std::end(kTypes), type) == std::end(kTypes)) {
      return fail(Code::kUnimplemented, "namespace {}: this type is not supported", type);
    }
    if (find(entries, type) != &entries[i]) {
      return fail(Code::kInvalidArgument, "namespace {}: more than one entry", type);
    }
  }
  return {};
}

Result<Change> from_pin(const Kind& kind, const std::optional<std::string>& pin) {
  if (!pin) {
    return fail(Code::kFailedPrecondition,
                "namespace {}: the pod's namespace is not available; recreate the pod", kind.type);
  }
  if (!pin->starts_with('/') || normalise_destination(*pin).starts_with("/proc/")) {
    return fail(Code::kInternal, "namespace {}: \"{}\" is not a pin", kind.type, *pin);
  }
  return Change{kind.type, *pin};
}

// network, ipc and uts: always the pod's or, where it says so, the host's.
Result<std::optional<Change>> plan_shared(const std::vector<NamespaceEntry>& entries,
                                          const Kind& kind, bool host,
                                          const std::optional<std::string>& pin) {
  const NamespaceEntry* entry = find(entries, kind.type);
  if (entry == nullptr) {
    if (host) return std::nullopt;
    return missing_entry(kind.type);
  }
  if (entry->path != sandbox_path(kind)) {
    return fail(Code::kInvalidArgument,
                "namespace {}: path \"{}\" is refused; only the pod's ({}) may be asked for",
                kind.type, entry->path, sandbox_path(kind));
  }
  if (host) return Change{kind.type, std::nullopt};
  TRY(Change change, from_pin(kind, pin));
  return change;
}

Result<PidUse> classify(const NamespaceEntry* entry, bool host_pid) {
  if (entry == nullptr) {
    return fail(Code::kUnimplemented,
                "{}.pid: NODE (no pid entry in linux.namespaces) is not supported; use POD or "
                "CONTAINER",
                kOptions);
  }
  if (entry->path.empty()) return PidUse::kContainer;
  if (entry->path != sandbox_path(kPid)) {
    return fail(Code::kUnimplemented,
                "{}.pid: TARGET (\"{}\", another process's namespace) is not supported; use POD "
                "or CONTAINER",
                kOptions, entry->path);
  }
  if (host_pid) {
    return fail(Code::kUnimplemented, "{}.pid: NODE is not supported; use POD or CONTAINER",
                kOptions);
  }
  return PidUse::kPod;
}

Result<> check_own(const std::vector<NamespaceEntry>& entries) {
  for (const std::string_view type : {"mount", "cgroup"}) {
    const NamespaceEntry* entry = find(entries, type);
    if (entry != nullptr && !entry->path.empty()) {
      return fail(Code::kInvalidArgument,
                  "namespace {}: path \"{}\" is refused; a container has its own", type,
                  entry->path);
    }
  }
  // containerd leaves the cgroup entry out on cgroup v1 and for privileged containers. Without a
  // mount entry the runtime would work on the host's own mounts.
  if (find(entries, "mount") == nullptr) return missing_entry("mount");
  if (find(entries, "user") != nullptr) {
    return fail(Code::kUnimplemented,
                "{}.userns_options: a user namespace (namespace user) is not supported", kOptions);
  }
  return {};
}

}  // namespace

Result<PidUse> classify_pid(const Spec& spec, const PodNamespaces& pod) {
  TRY(const std::vector<NamespaceEntry> entries, spec.namespaces());
  CHECK_OK(check_types(entries));
  return classify(find(entries, kPid.type), pod.host_pid);
}

Result<> apply(Spec& spec, const PodNamespaces& pod) {
  TRY(const std::vector<NamespaceEntry> entries, spec.namespaces());
  CHECK_OK(check_types(entries));
  CHECK_OK(check_own(entries));
  if (pod.host_ipc) {
    return fail(Code::kUnimplemented, "{}.ipc: NODE is not supported; use POD", kOptions);
  }

  std::vector<Change> changes;
  const auto add = [&](std::optional<Change> change) {
    if (change) changes.push_back(std::move(*change));
  };
  TRY(std::optional<Change> net, plan_shared(entries, kNetwork, pod.host_network, pod.net));
  TRY(std::optional<Change> ipc, plan_shared(entries, kIpc, false, pod.ipc));
  TRY(std::optional<Change> uts, plan_shared(entries, kUts, pod.host_network, pod.uts));
  add(std::move(net));
  add(std::move(ipc));
  add(std::move(uts));
  TRY(const PidUse pid, classify(find(entries, kPid.type), pod.host_pid));
  if (pid == PidUse::kPod) {
    TRY(Change change, from_pin(kPid, pod.pid));
    changes.push_back(std::move(change));
  }

  // Everything has been decided on entries that exist once: from here on nothing can fail.
  for (const Change& change : changes) {
    CHECK_OK(change.path ? spec.set_namespace_path(change.type, *change.path)
                         : spec.remove_namespace(change.type));
  }
  return {};
}

}  // namespace kuasar::oci
