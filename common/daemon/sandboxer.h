#pragma once

#include <functional>
#include <memory>
#include <string>

#include "async/blocking_pool.h"
#include "async/fair_gate.h"
#include "async/task.h"
#include "base/error.h"
#include "daemon/args.h"
#include "daemon/daemon_config.h"
#include "os/fd_holder.h"
#include "os/spawner.h"
#include "sandbox/sandbox.h"
#include "sandbox/state_paths.h"
#include "task/driver.h"

namespace kuasar::daemon {

/// What the daemon gives to its isolation technology; outlives the engine.
struct Parts {
  BlockingPool& pool;
  os::Spawner& spawner;
  os::FdHolder& holder;
  sandbox::StatePaths paths;
};

/// An isolation technology: how pods and how containers are made.
struct Engine {
  /// Whatever the other two refer to; destroyed last.
  std::shared_ptr<void> tools;
  std::unique_ptr<sandbox::SandboxFactory> factory;
  std::unique_ptr<task::ContainerDriver> driver;
  /// Where its work waits for its turn, for metrics and health; null: nowhere.
  const FairGate* gate = nullptr;
  /// Work beside all calls, or nothing; runs from the recovery on until it is cancelled at the
  /// stop.
  std::vector<std::function<Task<>()>> background;
};
using MakeEngine = std::function<Result<Engine>(Parts& parts)>;

/// The main() of every sandboxer: command line, configuration, state directory, sockets, recovery,
/// service until SIGTERM or SIGINT, clean end. `table` is bound to `config` and to the settings of
/// the technology; `make_engine` is called once, after they are read. Returns the exit status:
/// 0, 1 for a failure, 2 for a command line or a configuration that is refused.
int sandboxer_main(int argc, char** argv, const DaemonDefaults& defaults,
                   const DaemonConfig& config, const ConfigTable& table,
                   const MakeEngine& make_engine);

}  // namespace kuasar::daemon
