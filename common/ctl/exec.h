#pragma once

#include <string>

#include "base/error.h"
#include "ctl/args.h"
#include "ctl/daemons.h"

namespace kuasar::ctl {

/// Runs args.argv in a container of the daemon, with our standard streams as args say, and returns
/// its exit code. Blocks until it has ended and its output was written. The FIFOs that it makes in
/// the daemon's directory are gone at the end, whatever happens. With a terminal ours is raw
/// meanwhile. The process is killed when we are, or when our output is closed.
Result<int> run_exec(Daemon& daemon, const std::string& container, const Args& args);

}  // namespace kuasar::ctl
