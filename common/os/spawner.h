#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "os/clone_child.h"

namespace kuasar::os {

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
  /// The child is an OCI runtime: what it orphans to us is adopted by name soon after its end.
  bool leaves_orphans = false;
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

/// Starts processes and tells how they ended. On the host this is the keeper (KeeperSpawner), so
/// that both outlive this process; DirectSpawner makes them children of this process; tests record.
/// Runs on the io thread. A key names one process until that is acknowledged.
class Spawner {
 public:
  virtual ~Spawner() = default;

  /// Starts a child; a program that cannot be executed is an error here, not an exit code.
  /// A failure leaves no process behind. A key that names a process already, running or ended, of
  /// this daemon or of an earlier one, answers with that process and starts nothing.
  virtual Task<Result<Process>> spawn(std::string key, ProcessSpec spec) = 0;

  /// The process that a key names, running or ended; kNotFound.
  virtual Task<Result<Process>> find(std::string key) = 0;

  /// Names a process that was orphaned to us (a container's init once its OCI runtime has exited)
  /// or that an earlier daemon left behind. A key that names a process already answers with that
  /// one. kNotFound when it is gone.
  virtual Task<Result<Process>> adopt(std::string key, pid_t pid) = 0;

  /// Ends when the process has ended; its status stays to be asked for until acknowledge(). The
  /// Process must outlive the call. Cancelled: ends at once with `known` false.
  virtual Task<ExitStatus> wait(const Process& process) = 0;

  /// Its end is written down where a restart finds it, or nobody will ask: an ended child is
  /// reaped, the key is free. One that still runs is left alone.
  virtual void acknowledge(const Process& process) = 0;
};

/// Names the process of a record again, running or ended: what `key` names already, else what has
/// that pid and start time (pidfd.h) now. Nothing when it is gone, whoever has its pid by now.
Task<std::optional<Process>> readopt(Spawner& spawner, std::string key, pid_t pid,
                                     unsigned long long start_time);

/// Kills what a key names, of this daemon or of an earlier one, waits five seconds at most for its
/// end and acknowledges it; a key that names nothing: nothing. When it is cancelled, too, during
/// which it blocks.
Task<> end_named(Spawner& spawner, std::string key);

}  // namespace kuasar::os
