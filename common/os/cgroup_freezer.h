#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::os {

/// Stops every process of a container's cgroups (v1 freezer.state, v2 cgroup.freeze) and returns
/// once all have stopped; else it is undone and kDeadlineExceeded after `timeout`. Frozen already:
/// success. kFailedPrecondition when the directories have no freezer. Blocking.
Result<> freeze_cgroup(const std::vector<std::string>& dirs,
                       std::chrono::milliseconds timeout = std::chrono::seconds(2));
/// Lets them run again; without a freezer, or when the cgroup is gone: success.
Result<> thaw_cgroup(const std::vector<std::string>& dirs);
/// Thaws a v1 freezer and every one below it, for processes that have been sent SIGKILL: on v1 the
/// signal does not act on a frozen process, and a container may have frozen itself
/// (cgroup-v1/freezer-subsystem.rst). On v2 it does act, and nothing is written. Blocking.
Result<> thaw_to_die(const std::vector<std::string>& dirs);
/// Whether somebody has asked for the freeze of this very cgroup (not of one above it).
bool is_frozen(const std::vector<std::string>& dirs);

}  // namespace kuasar::os
