#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "container_plan.h"
#include "os/spawner.h"
#include "zygote.h"

namespace kuasar::wasm {

/// A scope of systemd that a new process is put into.
struct Scope {
  /// "slice:prefix:name".
  std::string cgroups_path;
  os::CgroupLimits limits;
};

/// A request to a zygote with its descriptors, kControlFd and the streams still to be filled in.
struct Launch {
  Request request;
  Plan plan;
  std::vector<UniqueFd> fds = std::vector<UniqueFd>(2);
  /// The plan is held until it is made.
  std::optional<Scope> scope;

  /// Adds a descriptor; its index.
  std::int32_t add(UniqueFd fd);
};

/// Opens and makes everything that a new container needs: its root and its mounts as detached
/// mounts, its namespaces, the files of `cgroups` to enter them by. Blocking.
Result<Launch> gather_container(ContainerBlueprint blueprint, const std::string& rootfs,
                                const std::vector<std::string>& cgroups);

/// The same for a process that is added to a container: the namespaces of its init, `pid`, of which
/// the caller knows that it lives.
Result<Launch> gather_process(Plan plan, pid_t pid, const std::vector<std::string>& cgroups);

/// A process that serves containers and is none, as its launch says.
struct Helper {
  os::Process process;
  /// Our end of its control socket.
  UniqueFd control;
};

/// Has it made by a zygote, names it `key`, and waits until it has said that it is ready. It is the
/// first that the OOM killer takes: it has the daemon's own score otherwise, which spares that.
/// After a failure what there is of it has the key, or ends by itself. `who` is for messages.
Task<Result<Helper>> launch_helper(os::Spawner& spawner, Zygote& zygote, Launch launch,
                                   std::string key, std::chrono::nanoseconds timeout,
                                   std::string who);

/// Makes the scope with the process in it, and its limits. Blocking.
Result<> enter_scope(const Scope& scope, pid_t pid);

}  // namespace kuasar::wasm
