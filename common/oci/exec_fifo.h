#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>

#include "async/blocking_pool.h"
#include "async/task.h"
#include "base/error.h"
#include "os/fd_holder.h"
#include "os/spawner.h"

namespace kuasar::oci {

/// Whether <root>/<id> is that of a container which runc has created and not started: there is
/// runc's state.json, and the FIFO that its init is about to open for writing. (crun has a FIFO of
/// the same name and the opposite direction, and another state file.)
bool has_runc_fifo(const std::string& runtime_state);

/// Does what `runc start` does, without executing it: opens the FIFO for reading, so that the init
/// can write its one byte and go on to the workload, and removes it (runc libcontainer,
/// Container.exec). `runc start` of newer versions also runs hooks.poststart: not for containers
/// that have any.
///
/// Safe against our death at any moment: an init whose reader dies between its open and its write
/// would fail with EPIPE. So the init is stopped while the reader is opened and handed to `holder`
/// as `name`; whoever calls this again after a restart goes on where the first call was. The FIFO
/// is removed before the byte is read: without it the init has been let go. `process` must outlive
/// the call.
Task<Result<>> let_init_go(os::FdHolder& holder, BlockingPool& pool, std::string name,
                           std::string runtime_state, const os::Process& process,
                           std::chrono::milliseconds timeout);

}  // namespace kuasar::oci
