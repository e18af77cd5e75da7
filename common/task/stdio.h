#pragma once

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::task {

/// What containerd named as the standard streams of a process.
struct StdioPaths {
  std::string stdin_path;
  std::string stdout_path;
  std::string stderr_path;
};

/// One output stream. PASS: the workload gets the FIFO itself, no byte passes the daemon. (PUMP,
/// with a pipe or pty in between, comes with the keeper.)
struct OutputStream {
  /// Kept until the container is deleted.
  UniqueFd reader;
  /// What the process gets; dropped once it has been started with it.
  UniqueFd process_end;
};

/// The streams of one process, made by TaskService and handed to the driver, which uses the
/// process ends at create or at start. Owned by the container's record until Delete.
class Stdio {
 public:
  /// Opens what `paths` names; an empty path is /dev/null. Never blocks.
  static Result<Stdio> open(const StdioPaths& paths);

  /// -1 where the stream is /dev/null.
  int stdout_fd() const { return stdout_.process_end.get(); }
  int stderr_fd() const { return stderr_.process_end.get(); }

  /// Closes our copies of the process ends: from here on only the workload holds them.
  void drop_process_ends();

 private:
  OutputStream stdout_;
  OutputStream stderr_;
};

}  // namespace kuasar::task
