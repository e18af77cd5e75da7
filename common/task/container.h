#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "async/event.h"
#include "async/gate.h"
#include "os/spawner.h"
#include "task/stdio.h"
#include "ttrpc/server.h"

namespace kuasar::task {

/// The states of the Task API plus the two that only a crash can leave visible.
enum class Phase { kCreating, kCreated, kRunning, kStopped, kDeleting };

/// One container as TaskService knows it. Owned by TaskService's table; a call that is under way
/// holds a shared_ptr and looks at `gone` after every wait.
struct Container {
  std::string id;
  std::string sandbox_id;
  std::string bundle;
  StdioPaths paths;
  Stdio stdio;
  bool shared_pid_namespace = false;

  Phase phase = Phase::kCreating;
  /// Deleted, or never came to be: whoever waited for it answers kNotFound.
  bool gone = false;
  int exit_status = 0;
  std::chrono::system_clock::time_point exited_at;

  /// How its init ended, known before the phase says so: the watcher notes it without the mutex.
  std::optional<os::ExitStatus> init_end;
  Event init_ended;

  /// Held by whoever changes the phase.
  AsyncMutex mutex;
  /// Set when the container has stopped and everything about its end is known, or it is gone.
  Event exited;
  /// containerd's connection for this container: the last one that asked for it by Create,
  /// Connect, State or Wait.
  std::shared_ptr<ttrpc::Peer> peer;
};

}  // namespace kuasar::task
