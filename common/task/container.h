#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "async/event.h"
#include "async/gate.h"
#include "base/timeline.h"
#include "os/spawner.h"
#include "task/stdio.h"
#include "ttrpc/server.h"

namespace kuasar::task {

/// The states of the Task API plus those that only a crash can leave visible. kCreating is of
/// containers alone, kStarting of execs.
/// kPaused is of containers, and not in their records: the kernel knows it.
enum class Phase { kCreating, kCreated, kStarting, kRunning, kPaused, kStopped, kDeleting };

/// A process as TaskService knows it: a container's init (inside Container) or an exec. A call that
/// is under way holds a shared_ptr and looks at `gone` after every wait.
struct Process {
  /// The exec's id; empty for the init.
  std::string exec;
  StdioPaths paths;
  bool terminal = false;
  /// Its output is read by somebody else than containerd, who is there: TaskService::await_exit().
  bool own_reader = false;
  /// Absent before the start of an exec, and after Delete.
  std::shared_ptr<Stdio> stdio;
  /// The streams of a start that an earlier daemon did not finish. They stay until the next start
  /// has opened its own: containerd's reader takes the end of the last writer for the end of the
  /// output, and never comes back (T22).
  std::shared_ptr<Stdio> former;
  /// What came before the process could take it: CloseIO, ResizePty.
  bool stdin_closed = false;
  std::optional<std::pair<std::uint16_t, std::uint16_t>> window;

  Phase phase = Phase::kCreating;
  /// Deleted, or never came to be: whoever waited for it answers kNotFound.
  bool gone = false;
  int exit_status = 0;
  std::chrono::system_clock::time_point exited_at;
  /// Why an exec could not be started, for a Start that is delivered again.
  std::string start_error;

  /// How it ended, known before the phase says so: the watcher notes it without the mutex.
  std::optional<os::ExitStatus> end;
  Event ended;

  /// Held by whoever changes the phase.
  AsyncMutex mutex;
  /// Set when the process has stopped and everything about its end is known, or it is gone.
  Event exited;
};

/// One container, its init included. Owned by TaskService's table.
struct Container : Process {
  std::string id;
  std::string sandbox_id;
  std::string bundle;
  /// Our own directory of it.
  std::string dir;
  bool shared_pid_namespace = false;
  /// Owner of the FIFOs, from the options of Create; 0 and 0: the OCI runtime sees to it.
  uid_t io_uid = 0;
  gid_t io_gid = 0;
  /// SELinux label of the FIFOs; may be empty.
  std::string mount_label;
  /// See ContainerDriver::runtime_for().
  std::string runtime;

  /// Of its start; none when an earlier daemon made it.
  TimelinePtr timeline;

  /// It has been sent SIGKILL, which a freezer must not hold up.
  bool killed = false;
  /// Deaths by the OOM killer that have been told.
  std::uint64_t oom_kills = 0;

  /// The end of its pod has taken it away, and nothing of it is left but this: the pid that it had.
  /// A STOPPED task answers until containerd's Delete or the end of its connection, as containerd
  /// keeps its side of a task that is not found (connection, log) until it is restarted.
  std::optional<pid_t> taken_away;

  std::map<std::string, std::shared_ptr<Process>> execs;
  /// containerd's connection for this container: the last one that asked for it by Create,
  /// Connect, State or Wait. After a recovery it counts as closed until it is seen to be held.
  std::shared_ptr<ttrpc::Peer> peer;
  /// Since when it is known that the connection went with a keeper, or that we had to close it:
  /// not containerd did.
  std::optional<std::chrono::steady_clock::time_point> lost_since;
};

}  // namespace kuasar::task
