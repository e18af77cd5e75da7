#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "async/blocking_pool.h"
#include "async/fair_gate.h"
#include "async/task_group.h"
#include "daemon/metrics.h"
#include "daemon/metrics_server.h"
#include "otlp/exporter.h"

namespace kuasar::keeper {
class KeeperClient;
}
namespace kuasar::sandbox {
class ControllerServer;
class OrphanCollector;
class SandboxManager;
}  // namespace kuasar::sandbox
namespace kuasar::task {
class EventPublisher;
class TaskService;
}  // namespace kuasar::task
namespace kuasar::ttrpc {
class Server;
}

namespace kuasar::daemon {

struct DaemonConfig;

/// What the daemon tells of itself to those who watch a node. Off, it costs nothing. Owned by the
/// daemon's service; lives on the io thread. stop() must have ended before it is destroyed.
class Telemetry {
 public:
  /// They outlive it.
  struct Sources {
    BlockingPool& pool;
    sandbox::SandboxManager& pods;
    sandbox::OrphanCollector& orphans;
    sandbox::ControllerServer& controller;
    task::TaskService& tasks;
    ttrpc::Server& task_server;
    task::EventPublisher& events;
    keeper::KeeperClient& keeper;
    /// May be null.
    const FairGate* gate = nullptr;
  };

  Telemetry(asio::any_io_executor executor, Sources sources, DaemonFacts facts);

  /// Observes both services from now on: before the first call, and after the recovery of
  /// sandboxes, which it counts as adopted. A failure leaves metrics unserved.
  Result<> begin(const DaemonConfig& config);
  /// Ends within two seconds; calls that end later are not told of.
  Task<> stop();

 private:
  Result<> begin_metrics(const std::string& address);
  void begin_traces(const std::string& target);
  void call_ended(const CallEnd& call);
  Gauges look() const;

  asio::any_io_executor executor_;
  Sources sources_;
  DaemonFacts facts_;
  std::optional<Metrics> metrics_;
  MetricsServer server_;
  std::optional<otlp::Exporter> exporter_;
  TaskGroup exporting_;
};

}  // namespace kuasar::daemon
