#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "async/fair_gate.h"
#include "async/task.h"
#include "base/error.h"
#include "base/timeline.h"
#include "oci/runtime_argv.h"
#include "os/spawner.h"

namespace kuasar::oci {

/// Which OCI runtime is run, and how.
struct RuntimeConfig {
  /// A name that is looked up in PATH, or an absolute path.
  std::string binary = "runc";
  /// --root, a directory of ours (contract T18).
  std::string root;
  /// A runtime that takes longer is killed; waiting at the gate does not count.
  std::chrono::milliseconds timeout{30'000};
};

/// Everything that `create` needs.
struct CreateArgs {
  std::string id;
  /// The key at the gate: pods do not wait for each other's runtimes.
  std::string pod;
  /// Our own bundle directory, with the rewritten config.json.
  std::string bundle;
  /// Written by the runtime; an older one is removed first.
  std::string pid_file;
  std::string log_file;
  /// The container's stdio, -1 is /dev/null. Borrowed until create() returns.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  /// See is_systemd_cgroups_path(); start and remove know it from the runtime's own state.
  bool systemd_cgroup = false;
  bool no_pivot = false;
  bool no_new_keyring = false;
  /// Where the terminal goes when the process has one (then its stdio is /dev/null).
  std::string console_socket;
  /// For the waits of create(); may be null.
  TimelinePtr timeline = nullptr;
};

/// Everything that `exec` needs.
struct ExecArgs {
  std::string id;
  std::string exec;
  /// As in CreateArgs.
  std::string pod;
  /// An OCI Process as JSON.
  std::string process_file;
  /// Written by the runtime; an older one is removed first.
  std::string pid_file;
  std::string log_file;
  /// As in CreateArgs.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  std::string console_socket;
};

/// Everything that `checkpoint` needs.
struct CheckpointArgs {
  std::string id;
  /// As in CreateArgs.
  std::string pod;
  std::string log_file;
  CheckpointFlags flags;
  /// The image is there: wait for the run that wrote it, if that goes on, and begin none.
  bool written = false;
};

/// Runs a runc-style runtime as a child process. Owned by OciRuntimes, lives on the io thread. At
/// most one call per container at a time (the sandbox's AsyncMutex sees to it), execs apart, which
/// are as many as there are. A run is named "<container>/<exec or ->/<verb>/<attempt>" to the
/// spawner, so that a restarted daemon finds it again. A started runtime
/// is always waited for, also when the coroutine is cancelled: a half-made container is worse
/// than a late answer.
///
/// Each run begins its log file anew. `create` and `exec` give the container's stdio to the
/// runtime as 0, 1 and 2, from where the new process inherits them; for the other verbs 1 and 2 go
/// to the log file. No pipe is read: one held by an init would never end (keeper.md). The runtime's
/// environment is PATH alone.
///
/// A run waits at the gate under its pod's name and leaves it as soon as the runtime has put a
/// child into the container's cgroup: from then on the pod's own CPU limit, volumes and hooks
/// decide how long the run takes. It leaves after a second in any case.
///
/// Errors begin with "OCI runtime create failed: " (start, delete), as containerd's do, and carry
/// the runtime's own last error message: kUnknown. A missing runtime is kFailedPrecondition with
/// the remedy, a runtime that was killed at the timeout kDeadlineExceeded, one that claims success
/// without a readable pid file kInternal. After a failure the runtime's state of the container is
/// undefined: call remove(force).
class OciRuntime {
 public:
  /// `spawner` and `gate` must outlive the runtime and its calls.
  OciRuntime(os::Spawner& spawner, FairGate& gate, RuntimeConfig config);
  OciRuntime(const OciRuntime&) = delete;
  OciRuntime& operator=(const OciRuntime&) = delete;

  /// The pid of the container's init, which waits for start().
  Task<Result<pid_t>> create(CreateArgs args);
  Task<Result<>> start(std::string id, std::string pod, std::string log_file,
                       TimelinePtr timeline = nullptr);
  /// The pid of a process that runs in the container from now on.
  Task<Result<pid_t>> exec(ExecArgs args);
  /// The result of an exec() that an earlier daemon began. kNotFound: it never came to run.
  Task<Result<pid_t>> resume_exec(ExecArgs args);
  /// Kills a `create` that an earlier daemon began, and waits for its end.
  Task<> abandon_create(std::string id);
  /// `checkpoint`, which runs criu. A failure carries criu's own last error where there is one;
  /// kFailedPrecondition without criu.
  Task<Result<>> checkpoint(CheckpointArgs args);
  /// `delete`; a container that the runtime does not know is success. `force` kills it first and
  /// takes runc 1.3 100 ms longer: a fallback.
  Task<Result<>> remove(std::string id, std::string pod, std::string log_file, bool force);

  /// The container is gone, its id may come again: its runs are counted from 0 anew.
  void forget(const std::string& id);

  const RuntimeConfig& config() const { return config_; }

 private:
  /// One run of the runtime: the verb, its command line, the log, the child's 0, 1 and 2.
  struct Run {
    std::string verb;
    std::string id;
    std::string pod;
    /// Empty: about the container.
    std::string exec;
    std::string log_file;
    Argv argv;
    std::vector<os::FdMapping> fds;
    TimelinePtr timeline = nullptr;
  };

  Task<Result<>> run(Run run, std::string key);
  Task<Result<>> wait_for(os::Process process, std::string log_file);
  std::string next_key(const Run& run);
  /// start, checkpoint and delete: without stdio, what the runtime prints goes to the log file. One
  /// that an earlier daemon began is waited for, not run again.
  Task<Result<>> run_quietly(Run run);
  Result<GlobalFlags> global_flags(const std::string& id, const std::string& log_file) const;
  std::string name() const;

  os::Spawner& spawner_;
  FairGate& gate_;
  RuntimeConfig config_;
  /// Runs begun so far, by "<container>/<exec or ->/<verb>".
  std::map<std::string, int> attempts_;
};

}  // namespace kuasar::oci
