#pragma once

#include <functional>
#include <string>

#include "async/fair_gate.h"
#include "daemon/daemon_config.h"

namespace kuasar::ctl::v1 {
class HealthResponse;
}
namespace kuasar::keeper {
class KeeperClient;
}
namespace kuasar::task {
class EventPublisher;
}

namespace kuasar::daemon {

/// A function that fills in what `kuasar-ctl health` tells of this process as a whole: who it is,
/// its settings, its keeper, its events, the OCI runtimes that hang and those that wait for their
/// turn (`gate` may be null). The arguments must outlive it; it is for the io thread.
std::function<void(ctl::v1::HealthResponse&)> describe_daemon(std::string name,
                                                              const DaemonConfig& config,
                                                              const keeper::KeeperClient& keeper,
                                                              const task::EventPublisher& events,
                                                              const FairGate* gate);

}  // namespace kuasar::daemon
