#include "oci/namespace_plan.h"

#include <algorithm>
#include <charconv>
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
constexpr Kind kUser{"user", "user"};
constexpr std::string_view kTypes[] = {"network", "ipc",    "uts",  "pid",
                                       "mount",   "cgroup", "user", "time"};

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

// The number of /proc/<pid>/ns/pid as containerd writes it; 0 for any other path.
pid_t pid_of(std::string_view path) {
  constexpr std::string_view kBefore = "/proc/";
  constexpr std::string_view kAfter = "/ns/pid";
  if (!path.starts_with(kBefore) || !path.ends_with(kAfter) ||
      path.size() <= kBefore.size() + kAfter.size()) {
    return 0;
  }
  path.remove_prefix(kBefore.size());
  path.remove_suffix(kAfter.size());
  pid_t pid = 0;
  const auto parsed = std::from_chars(path.data(), path.data() + path.size(), pid);
  const bool whole = parsed.ec == std::errc{} && parsed.ptr == path.data() + path.size();
  return whole && pid > 0 && path.front() != '0' ? pid : 0;
}

Result<PidUse> classify(const NamespaceEntry* entry, bool host_pid) {
  if (entry == nullptr) {
    if (host_pid) return PidUse::kNode;
    return missing_entry(kPid.type);
  }
  if (entry->path.empty()) return PidUse::kContainer;
  if (entry->path == sandbox_path(kPid)) return host_pid ? PidUse::kNode : PidUse::kPod;
  if (pid_of(entry->path) > 0) return PidUse::kTarget;
  return fail(Code::kInvalidArgument,
              "namespace pid: path \"{}\" is refused; the pod's ({}), another container's or a new "
              "one may be asked for",
              entry->path, sandbox_path(kPid));
}

Result<std::optional<Change>> plan_pid(const std::vector<NamespaceEntry>& entries,
                                       const PodNamespaces& pod) {
  const NamespaceEntry* entry = find(entries, kPid.type);
  TRY(const PidUse use, classify(entry, pod.host_pid));
  switch (use) {
    case PidUse::kContainer: return std::nullopt;
    case PidUse::kNode:
      if (entry == nullptr) return std::nullopt;
      return Change{kPid.type, std::nullopt};
    case PidUse::kPod: {
      TRY(Change change, from_pin(kPid, pod.pid));
      return change;
    }
    case PidUse::kTarget: {
      TRY(Change change, from_pin(kPid, pod.target_pid));
      return change;
    }
  }
  return fail(Code::kInternal, "namespace pid: unknown use");
}

Result<std::optional<Change>> plan_user(const std::vector<NamespaceEntry>& entries,
                                        const PodNamespaces& pod) {
  const NamespaceEntry* entry = find(entries, kUser.type);
  if (!pod.own_user) {
    if (entry == nullptr) return std::nullopt;
    return fail(Code::kInvalidArgument,
                "{}.userns_options: the container asks for a user namespace (namespace user), its "
                "pod has none",
                kOptions);
  }
  return plan_shared(entries, kUser, false, pod.user);
}

Result<> check_own(const std::vector<NamespaceEntry>& entries) {
  for (const std::string_view type : {"mount", "cgroup", "time"}) {
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
  return {};
}

}  // namespace

Result<PidUse> classify_pid(const Spec& spec, const PodNamespaces& pod) {
  TRY(const std::vector<NamespaceEntry> entries, spec.namespaces());
  CHECK_OK(check_types(entries));
  return classify(find(entries, kPid.type), pod.host_pid);
}

Result<pid_t> target_pid(const Spec& spec) {
  TRY(const std::vector<NamespaceEntry> entries, spec.namespaces());
  const NamespaceEntry* entry = find(entries, kPid.type);
  return entry == nullptr ? 0 : pid_of(entry->path);
}

Result<> apply(Spec& spec, const PodNamespaces& pod) {
  TRY(const std::vector<NamespaceEntry> entries, spec.namespaces());
  CHECK_OK(check_types(entries));
  CHECK_OK(check_own(entries));

  std::vector<Change> changes;
  const auto add = [&](std::optional<Change> change) {
    if (change) changes.push_back(std::move(*change));
  };
  TRY(std::optional<Change> net, plan_shared(entries, kNetwork, pod.host_network, pod.net));
  TRY(std::optional<Change> ipc, plan_shared(entries, kIpc, pod.host_ipc, pod.ipc));
  TRY(std::optional<Change> uts, plan_shared(entries, kUts, pod.host_network, pod.uts));
  TRY(std::optional<Change> pid, plan_pid(entries, pod));
  TRY(std::optional<Change> user, plan_user(entries, pod));
  add(std::move(net));
  add(std::move(ipc));
  add(std::move(uts));
  add(std::move(pid));
  add(std::move(user));

  // Everything has been decided on entries that exist once: from here on nothing can fail.
  for (const Change& change : changes) {
    CHECK_OK(change.path ? spec.set_namespace_path(change.type, *change.path)
                         : spec.remove_namespace(change.type));
  }
  return {};
}

}  // namespace kuasar::oci
