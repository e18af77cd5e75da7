#include <catch2/catch_test_macros.hpp>
#include <map>
#include <string>
#include <vector>

#include "oci/namespace_plan.h"

namespace kuasar::oci {
namespace {

using Entries = std::vector<NamespaceEntry>;

constexpr const char* kNet = "/var/run/netns/cni-1";
constexpr const char* kIpc = "/run/k/sandboxes/s/ns/ipc";
constexpr const char* kUts = "/run/k/sandboxes/s/ns/uts";
constexpr const char* kPid = "/run/k/sandboxes/s/ns/pid";

// The entries that containerd's CRI plugin writes for a sandbox with pid 0 (contract T24), in its
// order; `pid` as the container asks for it.
Entries from_cri(std::string pid) {
  return {{"pid", std::move(pid)}, {"ipc", "/proc/0/ns/ipc"},     {"uts", "/proc/0/ns/uts"},
          {"mount", ""},           {"network", "/proc/0/ns/net"}, {"cgroup", ""}};
}

std::string json_of(const Entries& entries) {
  std::string out = R"({"a":1,"linux":{"namespaces":[)";
  for (const NamespaceEntry& entry : entries) {
    if (&entry != entries.data()) out += ',';
    out += R"({"type":")" + entry.type + '"';
    if (!entry.path.empty()) out += R"(,"path":")" + entry.path + '"';
    out += '}';
  }
  return out + "]}}";
}

Spec spec_of(const Entries& entries) {
  return Spec::parse(json_of(entries)).value();
}

PodNamespaces all_pins() {
  PodNamespaces pod;
  pod.net = kNet;
  pod.ipc = kIpc;
  pod.uts = kUts;
  pod.pid = kPid;
  return pod;
}

Entries without(Entries entries, std::string_view type) {
  std::erase_if(entries, [&](const NamespaceEntry& e) { return e.type == type; });
  return entries;
}

Entries with_path(Entries entries, std::string_view type, std::string path) {
  for (NamespaceEntry& entry : entries) {
    if (entry.type == type) entry.path = path;
  }
  return entries;
}

// Refused, with all the words, and the spec as it was.
void check_refused(const Entries& entries, const PodNamespaces& pod, Code code,
                   const std::vector<std::string>& words) {
  Spec spec = spec_of(entries);
  const std::string before = spec.dump();
  const Result<> applied = apply(spec, pod);
  CAPTURE(before);
  REQUIRE_FALSE(applied);
  CAPTURE(applied.error().message);
  CHECK(applied.error().code == code);
  for (const std::string& word : words) {
    CAPTURE(word);
    CHECK(applied.error().message.find(word) != std::string::npos);
  }
  CHECK(spec.dump() == before);
}

// One row of the table of modes: what PodSandboxConfig says, how the container asks for its PID
// namespace (containerd writes /proc/0/ns/pid for POD and NODE), and every entry that the runtime
// must get.
struct Row {
  bool host_network;
  bool host_ipc;
  bool host_pid;
  /// As containerd sends it.
  std::string pid_sent;
  PidUse use;
  Entries wanted;
};

constexpr const char* kSandboxPid = "/proc/0/ns/pid";
constexpr const char* kTargetSent = "/proc/4242/ns/pid";
constexpr const char* kTargetPin = "/run/k/sandboxes/s/containers/c/pid-target";

const std::vector<Row>& table() {
  const NamespaceEntry own_pid{"pid", ""};
  const NamespaceEntry pod_pid{"pid", kPid};
  const NamespaceEntry target_pid{"pid", kTargetPin};
  const NamespaceEntry ipc{"ipc", kIpc};
  const NamespaceEntry uts{"uts", kUts};
  const NamespaceEntry net{"network", kNet};
  const NamespaceEntry mnt{"mount", ""};
  const NamespaceEntry cg{"cgroup", ""};
  static const std::vector<Row> rows = {
      // network POD, ipc POD
      {false, false, false, kSandboxPid, PidUse::kPod, {pod_pid, ipc, uts, mnt, net, cg}},
      {false, false, false, "", PidUse::kContainer, {own_pid, ipc, uts, mnt, net, cg}},
      {false, false, false, kTargetSent, PidUse::kTarget, {target_pid, ipc, uts, mnt, net, cg}},
      {false, false, true, kSandboxPid, PidUse::kNode, {ipc, uts, mnt, net, cg}},
      {false, false, true, "", PidUse::kContainer, {own_pid, ipc, uts, mnt, net, cg}},
      {false, false, true, kTargetSent, PidUse::kTarget, {target_pid, ipc, uts, mnt, net, cg}},
      // network POD, ipc NODE
      {false, true, false, kSandboxPid, PidUse::kPod, {pod_pid, uts, mnt, net, cg}},
      {false, true, false, "", PidUse::kContainer, {own_pid, uts, mnt, net, cg}},
      {false, true, false, kTargetSent, PidUse::kTarget, {target_pid, uts, mnt, net, cg}},
      {false, true, true, kSandboxPid, PidUse::kNode, {uts, mnt, net, cg}},
      {false, true, true, "", PidUse::kContainer, {own_pid, uts, mnt, net, cg}},
      {false, true, true, kTargetSent, PidUse::kTarget, {target_pid, uts, mnt, net, cg}},
      // network NODE (and with it uts), ipc POD
      {true, false, false, kSandboxPid, PidUse::kPod, {pod_pid, ipc, mnt, cg}},
      {true, false, false, "", PidUse::kContainer, {own_pid, ipc, mnt, cg}},
      {true, false, false, kTargetSent, PidUse::kTarget, {target_pid, ipc, mnt, cg}},
      {true, false, true, kSandboxPid, PidUse::kNode, {ipc, mnt, cg}},
      {true, false, true, "", PidUse::kContainer, {own_pid, ipc, mnt, cg}},
      {true, false, true, kTargetSent, PidUse::kTarget, {target_pid, ipc, mnt, cg}},
      // network NODE, ipc NODE
      {true, true, false, kSandboxPid, PidUse::kPod, {pod_pid, mnt, cg}},
      {true, true, false, "", PidUse::kContainer, {own_pid, mnt, cg}},
      {true, true, false, kTargetSent, PidUse::kTarget, {target_pid, mnt, cg}},
      {true, true, true, kSandboxPid, PidUse::kNode, {mnt, cg}},
      {true, true, true, "", PidUse::kContainer, {own_pid, mnt, cg}},
      {true, true, true, kTargetSent, PidUse::kTarget, {target_pid, mnt, cg}},
  };
  return rows;
}

PodNamespaces pod_of(const Row& row) {
  PodNamespaces pod;
  pod.host_network = row.host_network;
  pod.host_ipc = row.host_ipc;
  pod.host_pid = row.host_pid;
  if (!row.host_network) {
    pod.net = kNet;
    pod.uts = kUts;
  }
  if (!row.host_ipc) pod.ipc = kIpc;
  if (row.use == PidUse::kPod) pod.pid = kPid;
  if (row.use == PidUse::kTarget) pod.target_pid = kTargetPin;
  return pod;
}

}  // namespace

TEST_CASE("T24 T32 oci namespaces: every combination of modes") {
  CHECK(table().size() == 24);
  for (const Row& row : table()) {
    CAPTURE(row.host_network, row.host_ipc, row.host_pid, row.pid_sent);
    const PodNamespaces pod = pod_of(row);
    const Entries sent = from_cri(row.pid_sent);
    CHECK(classify_pid(spec_of(sent), pod).value() == row.use);
    Spec spec = spec_of(sent);
    const Result<> applied = apply(spec, pod);
    CAPTURE(applied ? std::string() : applied.error().message);
    REQUIRE(applied);
    CHECK(spec.namespaces().value() == row.wanted);
    CHECK(spec.dump() == json_of(row.wanted));
  }
}

// The 27 modes of pid, ipc and network, as words of PodSandboxConfig and of a container that asks
// for the same, with what becomes of them. A network or IPC namespace of the container's own does
// not exist in CRI: the sandbox layer refuses such a pod, here it counts as the pod's.
TEST_CASE("T24 oci namespaces: of 27 modes only NODE takes an entry away, and only its own") {
  enum Mode { kPodMode, kContainerMode, kNodeMode };
  constexpr Mode kModes[] = {kPodMode, kContainerMode, kNodeMode};
  for (const Mode pid : kModes) {
    for (const Mode ipc : kModes) {
      for (const Mode net : kModes) {
        CAPTURE(pid, ipc, net);
        PodNamespaces pod = all_pins();
        pod.host_pid = pid == kNodeMode;
        pod.host_ipc = ipc == kNodeMode;
        pod.host_network = net == kNodeMode;
        Spec spec = spec_of(from_cri(pid == kContainerMode ? "" : kSandboxPid));
        REQUIRE(apply(spec, pod));
        std::map<std::string, std::string> left;
        const Entries entries = spec.namespaces().value();
        for (const NamespaceEntry& e : entries) left[e.type] = e.path;
        std::map<std::string, std::string> wanted{{"mount", ""}, {"cgroup", ""}};
        if (pid != kNodeMode) wanted["pid"] = pid == kContainerMode ? "" : kPid;
        if (ipc != kNodeMode) wanted["ipc"] = kIpc;
        if (net != kNodeMode) wanted["network"] = kNet;
        if (net != kNodeMode) wanted["uts"] = kUts;
        CHECK(left == wanted);
      }
    }
  }
}

TEST_CASE("T24 oci namespaces: no row of the table is served without its pins") {
  std::optional<std::string> PodNamespaces::*const pins[] = {
      &PodNamespaces::net, &PodNamespaces::ipc, &PodNamespaces::uts, &PodNamespaces::pid,
      &PodNamespaces::target_pid};
  for (const Row& row : table()) {
    for (const auto pin : pins) {
      PodNamespaces pod = pod_of(row);
      if (!(pod.*pin)) continue;
      pod.*pin = std::nullopt;
      check_refused(from_cri(row.pid_sent), pod, Code::kFailedPrecondition, {"not available"});
    }
  }
}

TEST_CASE("T24 oci namespaces: a missing pin never yields a spec without the entry") {
  const std::pair<std::string, std::optional<std::string> PodNamespaces::*> pins[] = {
      {"network", &PodNamespaces::net},
      {"ipc", &PodNamespaces::ipc},
      {"uts", &PodNamespaces::uts},
      {"pid", &PodNamespaces::pid}};
  for (const auto& [type, member] : pins) {
    PodNamespaces pod = all_pins();
    pod.*member = std::nullopt;
    check_refused(from_cri("/proc/0/ns/pid"), pod, Code::kFailedPrecondition,
                  {"namespace " + type, "not available"});
    for (const char* bad : {"", "relative", "/proc/1/ns/net", "/../proc/self/ns/net"}) {
      pod.*member = bad;
      check_refused(from_cri("/proc/0/ns/pid"), pod, Code::kInternal, {"namespace " + type});
    }
  }
}

TEST_CASE("T24 oci namespaces: a missing entry is refused, not taken for the host's") {
  for (const std::string type : {"network", "ipc", "uts", "mount"}) {
    check_refused(without(from_cri(""), type), all_pins(), Code::kInvalidArgument,
                  {"namespace " + type, "no such entry"});
  }
  check_refused(without(from_cri(""), "pid"), all_pins(), Code::kInvalidArgument,
                {"namespace pid", "no such entry"});
  PodNamespaces node = all_pins();
  node.host_pid = node.host_ipc = true;
  Spec nothing_to_take = spec_of(without(without(from_cri(""), "pid"), "ipc"));
  CHECK(apply(nothing_to_take, node));
  check_refused({}, all_pins(), Code::kInvalidArgument, {"namespace mount"});
  // Host network leaves nothing to remove where containerd sent nothing.
  PodNamespaces host = all_pins();
  host.host_network = true;
  Spec spec = spec_of(without(without(from_cri(""), "network"), "uts"));
  CHECK(apply(spec, host));
  // cgroup v1 and privileged containers have no cgroup entry.
  Spec no_cgroup = spec_of(without(from_cri(""), "cgroup"));
  CHECK(apply(no_cgroup, all_pins()));
}

TEST_CASE("T24 oci namespaces: a path of another process is refused") {
  // TARGET without the pin that the caller makes of it.
  check_refused(from_cri(kTargetSent), all_pins(), Code::kFailedPrecondition,
                {"namespace pid", "not available"});
  const std::vector<std::string> bad = {
      "/proc/00/ns/pid", "/proc/self/ns/pid",     "/proc/1/ns/net",           "/proc//ns/pid",
      "/proc/-1/ns/pid", "/proc/1/task/1/ns/pid", "/proc/99999999999/ns/pid", "/run/k/x/ns/pid"};
  for (const std::string& path : bad) {
    check_refused(from_cri(path), all_pins(), Code::kInvalidArgument, {"namespace pid", path});
    CHECK(target_pid(spec_of(from_cri(path))).value() == 0);
  }
  CHECK(target_pid(spec_of(from_cri(kTargetSent))).value() == 4242);
  CHECK(target_pid(spec_of(from_cri(kSandboxPid))).value() == 0);
  CHECK(target_pid(spec_of(from_cri(""))).value() == 0);
  CHECK(target_pid(spec_of(without(from_cri(""), "pid"))).value() == 0);
  for (const std::string type : {"network", "ipc", "uts"}) {
    for (const std::string path : {"/proc/1/ns/net", "/var/run/netns/other", ""}) {
      check_refused(with_path(from_cri(""), type, path), all_pins(), Code::kInvalidArgument,
                    {"namespace " + type, "\"" + path + "\""});
      PodNamespaces host = all_pins();
      host.host_network = true;
      check_refused(with_path(from_cri(""), type, path), host, Code::kInvalidArgument,
                    {"namespace " + type});
    }
  }
  for (const std::string type : {"mount", "cgroup"}) {
    check_refused(with_path(from_cri(""), type, "/proc/1/ns/x"), all_pins(), Code::kInvalidArgument,
                  {"namespace " + type});
  }
}

TEST_CASE("T25 oci namespaces: a user namespace is the pod's, or refused by name") {
  const auto with_user = [](const std::string& path) {
    Entries entries = from_cri("");
    entries.push_back({"user", path});
    return entries;
  };
  constexpr const char* kUser = "/run/k/sandboxes/s/ns/user";
  PodNamespaces pod = all_pins();
  for (const std::string path : {"", "/proc/0/ns/user", "/proc/9/ns/user"}) {
    check_refused(with_user(path), pod, Code::kInvalidArgument,
                  {"linux.security_context.namespace_options.userns_options", "namespace user"});
  }
  pod.own_user = true;
  check_refused(with_user("/proc/0/ns/user"), pod, Code::kFailedPrecondition,
                {"namespace user", "not available"});
  pod.user = kUser;
  Spec spec = spec_of(with_user("/proc/0/ns/user"));
  REQUIRE(apply(spec, pod));
  Entries wanted = with_path(with_user(kUser), "ipc", kIpc);
  wanted = with_path(with_path(wanted, "uts", kUts), "network", kNet);
  CHECK(spec.namespaces().value() == wanted);
  // A container of the host's user namespace does not belong into such a pod.
  check_refused(from_cri(""), pod, Code::kInvalidArgument, {"namespace user", "no such entry"});
  for (const std::string path : {"", "/proc/9/ns/user"}) {
    check_refused(with_user(path), pod, Code::kInvalidArgument, {"namespace user"});
  }
}

TEST_CASE("oci namespaces: unknown and repeated types are refused") {
  for (const std::string type : {"Network", "nonsense"}) {
    Entries entries = from_cri("");
    entries.push_back({type, ""});
    check_refused(entries, all_pins(), Code::kUnimplemented, {"namespace " + type});
    CHECK_FALSE(classify_pid(spec_of(entries), all_pins()));
  }
  for (const std::string type : {"network", "pid", "mount"}) {
    Entries entries = from_cri("");
    entries.push_back({type, ""});
    check_refused(entries, all_pins(), Code::kInvalidArgument,
                  {"namespace " + type, "more than one"});
  }
}

TEST_CASE(
    "U9 oci namespaces: a container may have a time namespace of its own, and nobody else's") {
  Entries entries = from_cri("");
  entries.push_back({"time", ""});
  Spec spec = spec_of(entries);
  REQUIRE(apply(spec, all_pins()));
  CHECK(spec.namespaces().value().back() == NamespaceEntry{"time", ""});
  entries.back().path = "/proc/1/ns/time";
  check_refused(entries, all_pins(), Code::kInvalidArgument, {"namespace time", "refused"});
}

TEST_CASE("oci namespaces: the pid wish is read without any pin") {
  const PodNamespaces none;
  CHECK(classify_pid(spec_of(from_cri("")), none).value() == PidUse::kContainer);
  CHECK(classify_pid(spec_of(from_cri("/proc/0/ns/pid")), none).value() == PidUse::kPod);
  CHECK(classify_pid(spec_of(from_cri("/proc/1/ns/pid")), none).value() == PidUse::kTarget);
  PodNamespaces host;
  host.host_pid = true;
  CHECK(classify_pid(spec_of(from_cri("/proc/0/ns/pid")), host).value() == PidUse::kNode);
  // A container may have its own although the pod says NODE.
  CHECK(classify_pid(spec_of(from_cri("")), host).value() == PidUse::kContainer);
}

}  // namespace kuasar::oci
