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

enum class Mode { kPod, kContainer, kNode };

// One row of the table of modes: what PodSandboxConfig and the container say, and the entries that
// the runtime must get, or the code and the words of the refusal.
struct Row {
  Mode pid;
  Mode net;
  Mode ipc;
  Entries wanted;
  Code refusal = Code::kOk;
  std::string words = {};
};

const std::vector<Row>& table() {
  static const std::vector<Row> rows = {
      {Mode::kPod,
       Mode::kPod,
       Mode::kPod,
       {{"pid", kPid},
        {"ipc", kIpc},
        {"uts", kUts},
        {"mount", ""},
        {"network", kNet},
        {"cgroup", ""}}},
      {Mode::kContainer,
       Mode::kPod,
       Mode::kPod,
       {{"pid", ""},
        {"ipc", kIpc},
        {"uts", kUts},
        {"mount", ""},
        {"network", kNet},
        {"cgroup", ""}}},
      {Mode::kPod,
       Mode::kNode,
       Mode::kPod,
       {{"pid", kPid}, {"ipc", kIpc}, {"mount", ""}, {"cgroup", ""}}},
      {Mode::kContainer,
       Mode::kNode,
       Mode::kPod,
       {{"pid", ""}, {"ipc", kIpc}, {"mount", ""}, {"cgroup", ""}}},
      {Mode::kNode,
       Mode::kPod,
       Mode::kPod,
       {},
       Code::kUnimplemented,
       "namespace_options.pid: NODE"},
      {Mode::kNode,
       Mode::kNode,
       Mode::kPod,
       {},
       Code::kUnimplemented,
       "namespace_options.pid: NODE"},
      {Mode::kPod,
       Mode::kPod,
       Mode::kNode,
       {},
       Code::kUnimplemented,
       "namespace_options.ipc: NODE"},
      {Mode::kContainer,
       Mode::kPod,
       Mode::kNode,
       {},
       Code::kUnimplemented,
       "namespace_options.ipc: NODE"},
      {Mode::kPod,
       Mode::kNode,
       Mode::kNode,
       {},
       Code::kUnimplemented,
       "namespace_options.ipc: NODE"},
      {Mode::kContainer,
       Mode::kNode,
       Mode::kNode,
       {},
       Code::kUnimplemented,
       "namespace_options.ipc: NODE"},
      {Mode::kNode, Mode::kPod, Mode::kNode, {}, Code::kUnimplemented, "namespace_options."},
      {Mode::kNode, Mode::kNode, Mode::kNode, {}, Code::kUnimplemented, "namespace_options."},
  };
  return rows;
}

}  // namespace

TEST_CASE("T24 T32 oci namespaces: every combination of modes") {
  for (const Row& row : table()) {
    CAPTURE(static_cast<int>(row.pid), static_cast<int>(row.net), static_cast<int>(row.ipc));
    PodNamespaces pod = all_pins();
    pod.host_network = row.net == Mode::kNode;
    pod.host_ipc = row.ipc == Mode::kNode;
    pod.host_pid = row.pid == Mode::kNode;
    if (pod.host_network) pod.net = pod.uts = std::nullopt;
    const Entries sent = from_cri(row.pid == Mode::kContainer ? "" : "/proc/0/ns/pid");
    if (row.refusal != Code::kOk) {
      check_refused(sent, pod, row.refusal, {row.words});
      continue;
    }
    Spec spec = spec_of(sent);
    const Result<> applied = apply(spec, pod);
    CAPTURE(applied ? std::string() : applied.error().message);
    REQUIRE(applied);
    CHECK(spec.namespaces().value() == row.wanted);
    CHECK(spec.dump() == json_of(row.wanted));
    CHECK(classify_pid(spec_of(sent), pod).value() ==
          (row.pid == Mode::kPod ? PidUse::kPod : PidUse::kContainer));
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
  check_refused(without(from_cri(""), "pid"), all_pins(), Code::kUnimplemented,
                {"linux.security_context.namespace_options.pid: NODE"});
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
  check_refused(from_cri("/proc/4242/ns/pid"), all_pins(), Code::kUnimplemented,
                {"linux.security_context.namespace_options.pid: TARGET", "/proc/4242/ns/pid"});
  check_refused(from_cri("/proc/00/ns/pid"), all_pins(), Code::kUnimplemented, {"TARGET"});
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

TEST_CASE("T25 oci namespaces: a user namespace is refused by name") {
  for (const std::string path : {"", "/proc/0/ns/user", "/proc/9/ns/user"}) {
    Entries entries = from_cri("");
    entries.push_back({"user", path});
    check_refused(entries, all_pins(), Code::kUnimplemented,
                  {"linux.security_context.namespace_options.userns_options", "namespace user"});
  }
}

TEST_CASE("oci namespaces: unknown and repeated types are refused") {
  for (const std::string type : {"time", "Network", "nonsense"}) {
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

TEST_CASE("oci namespaces: the pid wish is read without any pin") {
  const PodNamespaces none;
  CHECK(classify_pid(spec_of(from_cri("")), none).value() == PidUse::kContainer);
  CHECK(classify_pid(spec_of(from_cri("/proc/0/ns/pid")), none).value() == PidUse::kPod);
  CHECK(classify_pid(spec_of(from_cri("/proc/1/ns/pid")), none).error().code ==
        Code::kUnimplemented);
  PodNamespaces host;
  host.host_pid = true;
  CHECK(classify_pid(spec_of(from_cri("/proc/0/ns/pid")), host).error().code ==
        Code::kUnimplemented);
  // A container may have its own although the pod says NODE.
  CHECK(classify_pid(spec_of(from_cri("")), host).value() == PidUse::kContainer);
}

}  // namespace kuasar::oci
