#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "oci/spec.h"
#include "os/mount.h"
#include "os/spawner.h"
#include "task/stdio.h"

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
  /// Our own directory of the container; the driver may keep its files there.
  std::string dir;
  /// Where the root file system is to be mounted: <containerd's bundle>/rootfs.
  std::string rootfs;
  std::vector<os::MountSpec> rootfs_mounts;
  /// Namespaces and pod mounts are already in it.
  oci::Spec spec;
  bool no_pivot_root = false;
  bool no_new_keyring = false;
};

/// Everything that a driver needs to add a process to a container.
struct ExecPlan {
  ProcessRef ref;
  /// Our own directory of the container.
  std::string dir;
  /// An OCI Process as JSON; TaskService removes it after exec().
  std::string process_file;
};

/// What an isolation technology does to containers, below TaskService: it keeps the kernel
/// objects, TaskService keeps the states. Runs on the io thread; calls for one container come one
/// at a time, except those about execs, wait_exit, signal, pids and host_pid. remove() may be
/// called for a container that is half made, already gone or unknown, and must then succeed.
class ContainerDriver {
 public:
  virtual ~ContainerDriver() = default;

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
  /// kNotFound when the process has ended.
  virtual Result<> signal(const ProcessRef& ref, int signal) = 0;
  /// SIGKILL to every process of the container.
  virtual Task<Result<>> kill_all(std::string container) = 0;
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
