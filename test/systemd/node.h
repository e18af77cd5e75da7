#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "support/cri_client.h"
#include "support/process.h"

// The node that `tools/dev systemd` boots, seen from inside: these tests run as root in it, beside
// systemd's units, and call containerd as a kubelet does.

namespace kuasar::test {

inline constexpr char kKeeperUnit[] = "kuasar-keeper@runc.service";
inline constexpr char kSandboxerUnit[] = "runc-sandboxer.service";
inline constexpr char kWasmUnit[] = "wasm-sandboxer.service";
inline constexpr char kContainerdUnit[] = "containerd.service";
inline constexpr char kContainerdSocket[] = "/run/containerd/containerd.sock";
inline constexpr char kHandler[] = "kuasar-runc";
/// The same sandboxer, with cgroups by systemd.
inline constexpr char kSystemdHandler[] = "kuasar-runc-systemd";
/// A pod's cgroup parent alone decides who makes the cgroups of its modules.
inline constexpr char kWasmHandler[] = "kuasar-wasm";

/// Runs systemctl; an exit code other than 0 fails the test with its words.
void systemctl(std::vector<std::string> arguments);
/// The value of a unit's property; empty when there is none.
std::string unit_property(const std::string& unit, const std::string& property);
pid_t main_pid(const std::string& unit);
/// Waits until the unit is active under another main pid than `before`; fails the test otherwise.
pid_t await_new_main_pid(const std::string& unit, pid_t before);
/// What a unit has logged until now, a line each.
std::vector<std::string> journal(const std::string& unit);
/// How many of them contain `text`.
std::size_t journal_count(const std::string& unit, const std::string& text);

/// Which build of the suite lies below /usr/local.
enum class Version { kThis, kNext };
/// Installs the daemon and the keeper of a version, each by rename, as a package manager does.
void install(Version version);
void install_program(const std::filesystem::path& from, const std::filesystem::path& to);
inline constexpr char kKeeperProgram[] = "/usr/local/libexec/kuasar/kuasar-keeper";

/// A pod in its own cgroup below /kubepods; `network` false: the node's.
cri::PodSandboxConfig node_pod(bool network, cri::NamespaceMode pid = cri::CONTAINER);
cri::ContainerConfig node_container(const cri::PodSandboxConfig& pod, const std::string& script);

/// A pod with one container that runs.
struct NodePod {
  cri::PodSandboxConfig config;
  std::string id;
  std::string container;
  std::filesystem::path log;
};
Result<NodePod> start_pod(CriClient& cri, const cri::PodSandboxConfig& config,
                          const std::string& script);
Result<std::string> start_container(CriClient& cri, const std::string& pod,
                                    const cri::PodSandboxConfig& config,
                                    const cri::ContainerConfig& container);
Result<> remove_pod(CriClient& cri, const std::string& id);

}  // namespace kuasar::test
