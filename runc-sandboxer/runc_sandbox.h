#pragma once

#include <memory>
#include <optional>
#include <string>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "os/spawner.h"
#include "sandbox/sandbox.h"
#include "sandbox/state_paths.h"

namespace kuasar::runc {

/// What all pods of the runc kind share; outlives them.
struct PodTools {
  BlockingPool& pool;
  os::Spawner& spawner;
  sandbox::StatePaths paths;
  /// The kuasar-pid-init executable.
  std::string pid_init;
  /// Write the default sysctls of containerd's own pods (T31).
  bool default_sysctls = true;
};

/// A pod of namespaces. IPC and UTS are pins on our tmpfs that no process holds, the network is
/// CRI's; start() executes nothing. A shared PID namespace needs a process, kuasar-pid-init: the
/// first container that asks for it starts it, and its death is the pod's.
class RuncSandbox : public sandbox::Sandbox {
 public:
  RuncSandbox(PodTools& tools, const state::v1::SandboxState& record);

  Task<Result<>> start() override;
  Task<Result<>> stop() override;
  Task<Result<task::Attachment>> attach(std::string container_id, std::string dir,
                                        oci::Spec spec) override;
  Task<> detach(std::string container_id) override;
  Task<os::ExitStatus> wait_exit() override;
  void save(state::v1::SandboxState& record) const override;
  Task<Result<>> recover() override;

 private:
  Result<> make_pod() const;
  Result<> add_pod_mounts(oci::Spec& spec) const;
  Task<Result<>> ensure_pid_init();
  Task<bool> adopt_pid_init();
  Task<> end_unknown_pid_init();
  Task<> kill_pid_init();
  std::string pid_init_key() const;
  std::string pin(std::string_view kind) const;

  PodTools& tools_;
  const state::v1::SandboxState& record_;
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
  Event init_up_;
  Event init_ended_;
  Event stopped_;
};

class RuncSandboxFactory : public sandbox::SandboxFactory {
 public:
  explicit RuncSandboxFactory(PodTools tools) : tools_(std::move(tools)) {}

  Result<> check(const state::v1::SandboxState& record) const override;
  std::unique_ptr<sandbox::Sandbox> make(const state::v1::SandboxState& record) override;

 private:
  PodTools tools_;
};

}  // namespace kuasar::runc
