#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "base/timeline.h"
#include "oci/spec.h"
#include "os/cgroup_limits.h"
#include "os/mount.h"
#include "os/spawner.h"
#include "task/stdio.h"

namespace google::protobuf {
class Any;
}
namespace kuasar::state::v1 {
class ContainerState;
class ProcessIdentity;
}  // namespace kuasar::state::v1

namespace kuasar::task {

/// Names a process of ours: a container's init (exec empty) or one of its execs. Never a pid.
struct ProcessRef {
  std::string container;
  std::string exec;
};

/// Everything a driver needs to make a container, decided before it acts.
struct ContainerPlan {
  std::string id;
  std::string sandbox_id;
  /// Our own directory of the container; the driver may keep its files there.
  std::string dir;
  /// Where the root file system is to be mounted: <containerd's bundle>/rootfs.
  std::string rootfs;
  std::vector<os::MountSpec> rootfs_mounts;
  /// Namespaces and pod mounts are already in it.
  oci::Spec spec;
  /// For root file system mounts with the options uidmap= and gidmap=.
  os::IdMap id_map = {};
  bool no_pivot_root = false;
  bool no_new_keyring = false;
  /// What runtime_for() has answered.
  std::string runtime;
  /// Of the container, for the driver's steps here and in start(); may be null.
  TimelinePtr timeline = nullptr;
};

/// Everything that a driver needs to add a process to a container.
struct ExecPlan {
  ProcessRef ref;
  /// Our own directory of the container.
  std::string dir;
  /// An OCI Process as JSON; TaskService removes it after exec().
  std::string process_file;
};

/// What checkpoint() writes, and how; the fields are those of containerd's CheckpointOptions.
struct CheckpointPlan {
  std::string container;
  /// Where the image goes; made when it does not exist.
  std::string image_path;
  /// Of the log and other temporary files; empty: a directory of the container's.
  std::string work_path;
  /// End the container once the image is written.
  bool exit = false;
  bool open_tcp = false;
  bool external_unix_sockets = false;
  bool terminal = false;
  bool file_locks = false;
  std::vector<std::string> empty_namespaces;
  std::string cgroups_mode;
  /// The image is there, written by an earlier daemon's call: its end is waited for, and no other
  /// is begun.
  bool written = false;
};

/// What an isolation technology does to containers, below TaskService: it keeps the kernel
/// objects, TaskService keeps the states. Runs on the io thread; calls for one container come one
/// at a time, except those about execs, wait_exit, signal, stats, pids and host_pid.
/// remove() may be called for a container that is half made, already gone or unknown, and must then
/// succeed.
class ContainerDriver {
 public:
  virtual ~ContainerDriver() = default;

  /// The name of the OCI runtime for a container whose runtime handler names `binary` (empty when
  /// it names none). It goes into the container's record, so that every later call about it, also
  /// of another daemon with another configuration, uses the same.
  virtual Result<std::string> runtime_for(const std::string& binary) = 0;

  /// Makes the container up to the point where its init waits to be started. After a failure
  /// TaskService calls remove(). `stdio` outlives the call.
  virtual Task<Result<>> create(ContainerPlan plan, const Stdio& stdio) = 0;
  virtual Task<Result<>> start(std::string container) = 0;
  /// Runs a process in the container; ends once it runs. After a failure nothing runs.
  virtual Task<Result<>> exec(ExecPlan plan, const Stdio& stdio) = 0;
  /// Forgets an exec that has ended, or was never started.
  virtual void forget_exec(const ProcessRef& ref) = 0;
  /// The size of the process's terminal.
  virtual Task<Result<>> resize(ProcessRef ref, std::shared_ptr<const Stdio> stdio,
                                std::uint16_t width, std::uint16_t height) = 0;
  /// Ends when the process has ended; also after recover(). Cancelled: `known` is false.
  virtual Task<os::ExitStatus> wait_exit(ProcessRef ref) = 0;
  /// `then` is called once when wait_exit() would end without waiting; at most one for a process.
  /// It is forgotten with the process.
  virtual void on_exit(const asio::any_io_executor& executor, const ProcessRef& ref,
                       std::function<void()> then) = 0;
  /// kNotFound when the process has ended.
  virtual Result<> signal(const ProcessRef& ref, int signal) = 0;
  /// The end of a process is on record: what is left of it in the kernel may go. A zombie in a PID
  /// namespace would keep the namespace's init from ending.
  virtual void reap(const ProcessRef& ref) = 0;
  /// A signal to every process of the container but its init.
  virtual Task<Result<>> signal_others(std::string container, int signal) = 0;
  /// SIGKILL to every process of the container.
  virtual Task<Result<>> kill_all(std::string container) = 0;
  /// Stops every process of the container, or lets them run on. Already so: success.
  virtual Task<Result<>> freeze(std::string container) = 0;
  virtual Task<Result<>> thaw(std::string container) = 0;
  /// Its init has been sent SIGKILL: whatever keeps that from acting, such as a freezer, ends.
  virtual Task<Result<>> thaw_to_die(std::string) { co_return Result<>(); }
  /// What the kernel says of it.
  virtual bool frozen(const std::string& container) = 0;
  /// All of the limits or none.
  virtual Task<Result<>> update(std::string container, os::CgroupLimits limits) = 0;
  /// A message of containerd's, io.containerd.cgroups.v1.Metrics or v2 (T4).
  virtual Task<Result<google::protobuf::Any>> stats(std::string container) = 0;
  /// How many of its processes the OOM killer has ended.
  virtual std::uint64_t oom_kills(const std::string& container) = 0;
  /// `then` is called whenever oom_kills() may have changed, until the container is removed; never
  /// for one that cannot be watched.
  virtual void on_oom(const asio::any_io_executor& executor, const std::string& container,
                      std::function<void()> then) = 0;
  /// Forgets what on_exit() and on_oom() were given; the processes go on.
  virtual void stop_watching() = 0;
  /// Writes an image of the running container. A failure leaves it running.
  virtual Task<Result<>> checkpoint(CheckpointPlan plan) = 0;
  /// Host pids of all processes; may be empty after the end.
  virtual std::vector<pid_t> pids(const std::string& container) = 0;
  /// Host pid of the process, >= 1, also after its end (T7); 0 for an exec that never ran.
  virtual pid_t host_pid(const ProcessRef& ref) = 0;
  /// Takes away everything that create() made, also processes that still run.
  virtual Task<Result<>> remove(std::string container) = 0;

  /// Adds the driver's own facts to a record, and takes a container over from one that an earlier
  /// daemon wrote: true when its init is alive.
  virtual void save(const std::string& container, state::v1::ContainerState& record) = 0;
  /// When it is false, it is not known any more how it ended; otherwise wait_exit() tells, also
  /// of one that has ended meanwhile.
  virtual Task<Result<bool>> recover(std::string dir,
                                     std::shared_ptr<const state::v1::ContainerState> record) = 0;
  /// The same for an exec whose record says that it ran.
  virtual Task<Result<bool>> recover_exec(ProcessRef ref, state::v1::ProcessIdentity identity) = 0;
  /// The result of an exec() that an earlier daemon was in; kNotFound when it never came to run.
  virtual Task<Result<>> resume_exec(ExecPlan plan) = 0;
};

}  // namespace kuasar::task
