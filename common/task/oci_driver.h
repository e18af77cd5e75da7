#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "oci/runtime.h"
#include "task/driver.h"

namespace kuasar::task {

/// Containers made by an OCI runtime (runc) on the host: the init is a process of this host whose
/// pidfd we hold. The runtime is executed for create, start and delete only; signals go by pidfd,
/// a whole container's by its cgroups. Owned by the daemon, lives on the io thread; mounts and
/// cgroup walks run on the pool.
class OciDriver : public ContainerDriver {
 public:
  OciDriver(os::Spawner& spawner, BlockingPool& pool, oci::OciRuntime& runtime);

  Task<Result<>> create(ContainerPlan plan, const Stdio& stdio) override;
  Task<Result<>> start(std::string container) override;
  Task<os::ExitStatus> wait_exit(ProcessRef ref) override;
  Result<> signal(const ProcessRef& ref, int signal) override;
  Task<Result<>> kill_all(std::string container) override;
  std::vector<pid_t> pids(const std::string& container) override;
  pid_t host_pid(const ProcessRef& ref) override;
  Task<Result<>> remove(std::string container) override;
  void save(const std::string& container, state::v1::ContainerState& record) override;
  Task<Result<bool>> recover(std::string dir,
                             std::shared_ptr<const state::v1::ContainerState> record) override;

 private:
  struct Entry {
    std::string dir;
    std::string rootfs;
    pid_t pid = 1;
    unsigned long long start_time = 0;
    std::vector<std::string> cgroups;
    /// Absent when the init has not been made or was gone at recovery.
    std::optional<os::Process> init;
  };
  using EntryPtr = std::shared_ptr<Entry>;

  EntryPtr find(const std::string& container) const;

  os::Spawner& spawner_;
  BlockingPool& pool_;
  oci::OciRuntime& runtime_;
  std::map<std::string, EntryPtr> entries_;
};

}  // namespace kuasar::task
