#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// A descriptor that the child shall see under number `child_fd`. The parent keeps its own.
struct FdMapping {
  int parent_fd;
  int child_fd;
};

/// Everything about a child before it exists, as data: tests compare it whole.
struct ProcessSpec {
  std::vector<std::string> argv;
  /// The file to execute, a path or a name that is looked up in the daemon's PATH; empty: argv[0].
  std::string program;
  /// The whole environment, "NAME=value" each.
  std::vector<std::string> env;
  /// Working directory; empty means "/".
  std::string cwd;
  /// Descriptors of the child; 0, 1 and 2 are /dev/null where they are not named. All others are
  /// closed on exec.
  std::vector<FdMapping> fds;
  /// The child is PID 1 of a PID namespace of its own / has a mount namespace of its own.
  bool new_pid_namespace = false;
  bool new_mount_namespace = false;
};

/// How a process ended. `code` is its exit code, or 128 + n when signal n killed it.
struct ExitStatus {
  int code = 0;
  std::chrono::system_clock::time_point at;
  /// False when nobody can tell any more (the process was not our child and the kernel is too
  /// old for PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15): then code is 255.
  bool known = true;
};

/// A process that we watch by a pidfd, so that its pid cannot be mistaken for another's.
struct Process {
  std::string key;
  pid_t pid = -1;
  UniqueFd pidfd;
};

/// Starts processes and tells how they ended. On the host this will be the keeper
/// (KeeperSpawner); DirectSpawner makes them children of this process; tests record.
/// Runs on the io thread. The same key names the same child for as long as it is not waited for.
class Spawner {
 public:
  virtual ~Spawner() = default;

  /// Starts a child; a program that cannot be executed is an error here, not an exit code.
  /// A failure leaves no process behind.
  virtual Task<Result<Process>> spawn(std::string key, ProcessSpec spec) = 0;

  /// Takes over a process that was orphaned to us (a container's init once its OCI runtime has
  /// exited) or that an earlier daemon left behind. kNotFound when it is gone.
  virtual Task<Result<Process>> adopt(std::string key, pid_t pid) = 0;

  /// Ends when the process has ended, and reaps it if it is a child. The Process must outlive
  /// the call. One waiter per process. Cancelled: ends at once with `known` false, reaps nothing.
  virtual Task<ExitStatus> wait(const Process& process) = 0;
};

}  // namespace kuasar::os
