#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "os/cgroup_oom.h"
#include "os/packed_paths.h"
#include "os/readable.h"
#include "task/driver.h"

namespace kuasar::task {

/// What drivers have in common whose containers are processes of this host: their pidfds are ours,
/// their exits come from the spawner, and what is done to a whole container is done by its cgroups.
/// To the spawner a process is named "<container>/<exec or ->/process". Lives on the io thread;
/// cgroup walks run on the pool.
class HostDriver : public ContainerDriver {
 public:
  HostDriver(os::Spawner& spawner, BlockingPool& pool) : spawner_(spawner), pool_(pool) {}

  Task<Result<>> resize(ProcessRef ref, std::shared_ptr<const Stdio> stdio, std::uint16_t width,
                        std::uint16_t height) override;
  Task<os::ExitStatus> wait_exit(ProcessRef ref) override;
  void on_exit(const asio::any_io_executor& executor, const ProcessRef& ref,
               std::function<void()> then) override;
  Result<> signal(const ProcessRef& ref, int signal) override;
  void reap(const ProcessRef& ref) override;
  Task<Result<>> signal_others(std::string container, int signal) override;
  Task<Result<>> kill_all(std::string container) override;
  Task<Result<>> freeze(std::string container) override;
  Task<Result<>> thaw(std::string container) override;
  Task<Result<>> thaw_to_die(std::string container) override;
  bool frozen(const std::string& container) override;
  Task<Result<>> update(std::string container, os::CgroupLimits limits) override;
  Task<Result<google::protobuf::Any>> stats(std::string container) override;
  std::uint64_t oom_kills(const std::string& container) override;
  void on_oom(const asio::any_io_executor& executor, const std::string& container,
              std::function<void()> then) override;
  void stop_watching() override;
  std::vector<pid_t> pids(const std::string& container) override;
  pid_t host_pid(const ProcessRef& ref) override;
  void save(const std::string& container, state::v1::ContainerState& record) override;
  Task<Result<bool>> recover_exec(ProcessRef ref, state::v1::ProcessIdentity identity) override;

 protected:
  /// An init or an exec.
  struct Member {
    pid_t pid = 0;
    unsigned long long start_time = 0;
    /// Absent when it has not been made or was gone at recovery.
    std::optional<os::Process> process;
    std::unique_ptr<os::WhenReadable> exit_watch;
  };
  using MemberPtr = std::shared_ptr<Member>;
  /// A container; drivers derive theirs.
  struct Entry {
    virtual ~Entry() = default;
    std::string dir;
    std::string rootfs;
    TimelinePtr timeline;
    os::PackedPaths cgroups;
    /// Empty with the cgroupfs driver.
    std::string systemd_unit;
    std::unique_ptr<os::OomWatch> oom;
    MemberPtr init = std::make_shared<Member>();
    std::map<std::string, MemberPtr> execs;
  };
  using EntryPtr = std::shared_ptr<Entry>;

  EntryPtr find(const std::string& container) const;
  MemberPtr find(const ProcessRef& ref) const;
  void enter(const std::string& container, EntryPtr entry) {
    entries_[container] = std::move(entry);
  }
  /// Writes the spec into the container's directory and mounts its root file system on
  /// plan.rootfs.
  Task<Result<>> mount_rootfs(const ContainerPlan& plan);
  /// Kills its processes.
  Task<Result<>> begin_remove(std::string container);
  /// Afterwards: its cgroups and mounts go, its processes are acknowledged, its entry is gone. A
  /// failure leaves the entry.
  Task<Result<>> finish_remove(std::string container);
  /// Names a process that has been made, but not by the spawner itself.
  Task<Result<>> adopt(ProcessRef ref, MemberPtr member, pid_t pid);
  /// The process that a record names: what the spawner knows by its key counts, also when it has
  /// ended meanwhile; otherwise the pid, if it is still that process.
  Task<Result<bool>> readopt(ProcessRef ref, MemberPtr member, pid_t pid,
                             unsigned long long start_time);
  /// What recover() begins with for every driver.
  void recover_entry(EntryPtr entry, const std::string& dir,
                     const state::v1::ContainerState& record);
  static std::string process_key(const ProcessRef& ref);
  static Error gone(const ProcessRef& ref);
  /// Replaces a score that the machine does not allow, with which no process could be made.
  Result<> clamp_oom_score(oci::Spec& spec);
  /// config.json in the container's directory.
  static std::string config_path(const std::string& dir);

  os::Spawner& spawner_;
  BlockingPool& pool_;

 private:
  Result<EntryPtr> with_cgroups(const std::string& container) const;

  std::map<std::string, EntryPtr> entries_;
  os::OomLedger ooms_;
  /// Found out when it is needed first.
  std::optional<int> lowest_oom_score_adj_;
};

}  // namespace kuasar::task
