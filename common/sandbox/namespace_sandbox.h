#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "oci/namespace_plan.h"
#include "os/spawner.h"
#include "sandbox/pod_helper.h"
#include "sandbox/pod_selinux.h"
#include "sandbox/sandbox.h"
#include "sandbox/state_paths.h"

namespace kuasar::sandbox {

/// What all pods of namespaces of a daemon share; outlives them.
struct PodTools {
  BlockingPool& pool;
  os::Spawner& spawner;
  StatePaths paths;
  /// The kuasar-pid-init executable.
  std::string pid_init;
  /// Write the default sysctls of containerd's own pods (T31).
  bool default_sysctls = true;
  /// Cgroup parents that pods of ours have made and that are still there. A pod that comes to one
  /// owns it, too: the last of them removes it.
  std::set<std::string> made_cgroups = {};
};

/// A pod of namespaces on this host, of the runc kind and of the wasm kind. IPC and UTS are pins on
/// our tmpfs that no process holds, the network is CRI's; start() executes nothing, but for a pod
/// with a user namespace, which a helper makes. A shared PID namespace needs a process,
/// kuasar-pid-init: the first container that asks for it starts it, and its death is the pod's.
class NamespaceSandbox : public Sandbox {
 public:
  NamespaceSandbox(PodTools& tools, const state::v1::SandboxState& record);

  Task<Result<>> start(std::shared_ptr<const runtime::v1::PodSandboxConfig> config,
                       TimelinePtr timeline) override;
  Task<Result<>> stop() override;
  Task<Result<task::Attachment>> attach(std::string container_id, std::string dir, oci::Spec spec,
                                        TimelinePtr timeline) override;
  Task<> detach(std::string container_id) override;
  bool has_process() const override { return init_ || init_lost_; }
  Task<os::ExitStatus> wait_exit() override;
  std::vector<oci::NamespaceEntry> namespaces() const override;
  pid_t pid() const override;
  void save(state::v1::SandboxState& record) const override;
  Task<Result<>> recover() override;

 private:
  Result<> make_files(const runtime::v1::PodSandboxConfig& config, TimelinePtr timeline) const;
  Result<> close_directory() const;
  Result<> make_namespaces(const runtime::v1::PodSandboxConfig& config, TimelinePtr timeline) const;
  Result<> add_pod_mounts(oci::Spec& spec) const;
  Result<> check_container(const oci::Spec& spec) const;
  Task<Result<oci::PodNamespaces>> namespaces_for(oci::PidUse pid_use, std::string container_id,
                                                  pid_t target);
  Task<Result<>> ensure_pid_init();
  Task<bool> adopt_pid_init();
  Task<> end_unknown_pid_init();
  Task<> kill_pid_init();
  /// Of kuasar-pid-init: beside those of the containers.
  std::vector<std::string> init_cgroups() const;
  void log_unkillable(pid_t pid) const;
  std::string pid_init_key() const;
  std::string pin(std::string_view kind) const;
  std::string target_pin(std::string_view container_id) const;
  PodHelper helper() const { return {tools_.spawner, tools_.pool, tools_.pid_init}; }

  PodTools& tools_;
  const state::v1::SandboxState& record_;
  /// What the pod's configuration says.
  std::string cgroup_parent_;
  bool host_network_;
  bool host_ipc_;
  bool host_pid_;
  std::optional<PodUserNamespace> user_namespace_;
  SelinuxLabels labels_;
  /// See SandboxState.own_cgroups.
  std::vector<std::string> own_cgroups_;
  std::optional<os::Process> init_;
  unsigned long long init_start_time_ = 0;
  /// wait_exit() watches init_, and is the only one to do so.
  bool watched_ = false;
  /// stop() has begun: the end of init_ is ours.
  bool stopping_ = false;
  /// The record names an init that was gone when this daemon came.
  bool init_lost_ = false;
  Event init_ended_;
};

class NamespaceSandboxFactory : public SandboxFactory {
 public:
  explicit NamespaceSandboxFactory(PodTools tools) : tools_(std::move(tools)) {}

  Result<> check(const state::v1::SandboxState& record) const override;
  std::unique_ptr<Sandbox> make(const state::v1::SandboxState& record) override;

 private:
  PodTools tools_;
};

}  // namespace kuasar::sandbox
