#pragma once

#include <memory>
#include <string>

#include "async/blocking_pool.h"
#include "oci/runtimes.h"
#include "os/fd_holder.h"
#include "task/host_driver.h"

namespace kuasar::task {

/// Containers made by OCI runtimes (runc, crun) on the host. The runtime is executed for create,
/// exec, checkpoint and delete only, for start where it is not runc or the spec has poststart
/// hooks. Owned by the daemon, lives on the io thread; mounts run on the pool.
class OciDriver : public HostDriver {
 public:
  /// `holder` keeps what a Start needs over a restart.
  OciDriver(os::Spawner& spawner, BlockingPool& pool, os::FdHolder& holder,
            oci::OciRuntimes& runtimes);

  Result<std::string> runtime_for(const std::string& binary) override;
  Task<Result<>> create(ContainerPlan plan, const Stdio& stdio) override;
  Task<Result<>> start(std::string container) override;
  Task<Result<>> exec(ExecPlan plan, const Stdio& stdio) override;
  void forget_exec(const ProcessRef& ref) override;
  Task<Result<>> checkpoint(CheckpointPlan plan) override;
  Task<Result<>> remove(std::string container) override;
  Task<Result<bool>> recover(std::string dir,
                             std::shared_ptr<const state::v1::ContainerState> record) override;
  Task<Result<>> resume_exec(ExecPlan plan) override;

 private:
  struct OciEntry : Entry {
    /// The container's own, from its create to its delete.
    oci::OciRuntime* runtime;
    std::string sandbox_id;
    /// `runc start` would do more than let the init go.
    bool poststart_hooks = true;
  };
  using OciEntryPtr = std::shared_ptr<OciEntry>;

  OciEntryPtr find_oci(const std::string& container) const;
  oci::ExecArgs exec_args(const ExecPlan& plan) const;

  /// Names what an OCI runtime has left behind.
  Task<Result<>> adopt_left(ProcessRef ref, MemberPtr member, pid_t pid);
  /// True when the init runs on; false: the runtime has to be asked.
  Task<bool> start_without_exec(OciEntryPtr entry, std::string container);

  os::FdHolder& holder_;
  oci::OciRuntimes& runtimes_;
};

}  // namespace kuasar::task
