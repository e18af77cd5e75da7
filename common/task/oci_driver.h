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
/// pidfd we hold. The runtime is executed for create, start, exec and delete only; signals go by
/// pidfd, a whole container's by its cgroups. To the spawner a process is named
/// "<container>/<exec or ->/process". Owned by the daemon, lives on the io thread; mounts and
/// cgroup walks run on the pool.
class OciDriver : public ContainerDriver {
 public:
  OciDriver(os::Spawner& spawner, BlockingPool& pool, oci::OciRuntime& runtime);

  Task<Result<>> create(ContainerPlan plan, const Stdio& stdio) override;
  Task<Result<>> start(std::string container) override;
  Task<Result<>> exec(ExecPlan plan, const Stdio& stdio) override;
  void forget_exec(const ProcessRef& ref) override;
  Task<Result<>> resize(ProcessRef ref, std::shared_ptr<const Stdio> stdio, std::uint16_t width,
                        std::uint16_t height) override;
  Task<os::ExitStatus> wait_exit(ProcessRef ref) override;
  Result<> signal(const ProcessRef& ref, int signal) override;
  Task<Result<>> kill_all(std::string container) override;
  std::vector<pid_t> pids(const std::string& container) override;
  pid_t host_pid(const ProcessRef& ref) override;
  Task<Result<>> remove(std::string container) override;
  void save(const std::string& container, state::v1::ContainerState& record) override;
  Task<Result<bool>> recover(std::string dir,
                             std::shared_ptr<const state::v1::ContainerState> record) override;
  Task<Result<bool>> recover_exec(ProcessRef ref, state::v1::ProcessIdentity identity) override;
  Task<Result<>> resume_exec(ExecPlan plan) override;

 private:
  /// An init or an exec.
  struct Member {
    pid_t pid = 0;
    unsigned long long start_time = 0;
    /// Absent when it has not been made or was gone at recovery.
    std::optional<os::Process> process;
  };
  using MemberPtr = std::shared_ptr<Member>;
  struct Entry {
    std::string dir;
    std::string rootfs;
    std::vector<std::string> cgroups;
    MemberPtr init = std::make_shared<Member>();
    std::map<std::string, MemberPtr> execs;
  };
  using EntryPtr = std::shared_ptr<Entry>;

  EntryPtr find(const std::string& container) const;
  MemberPtr find(const ProcessRef& ref) const;
  Task<Result<>> adopt(ProcessRef ref, MemberPtr member, pid_t pid);
  Task<Result<bool>> readopt(ProcessRef ref, MemberPtr member, pid_t pid,
                             unsigned long long start_time);
  static oci::ExecArgs exec_args(const ExecPlan& plan);

  os::Spawner& spawner_;
  BlockingPool& pool_;
  oci::OciRuntime& runtime_;
  std::map<std::string, EntryPtr> entries_;
};

}  // namespace kuasar::task
