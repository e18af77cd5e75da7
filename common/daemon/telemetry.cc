#include "daemon/telemetry.h"

#include <utility>

#include "base/log.h"
#include "daemon/daemon_config.h"
#include "keeper/client.h"
#include "sandbox/controller_server.h"
#include "sandbox/orphan_collector.h"
#include "sandbox/sandbox_manager.h"
#include "task/events.h"
#include "task/task_service.h"
#include "ttrpc/server.h"

namespace kuasar::daemon {
namespace {

std::size_t sum(const std::map<std::string, std::size_t>& counts) {
  std::size_t all = 0;
  for (const auto& [state, count] : counts) all += count;
  return all;
}

}  // namespace

Telemetry::Telemetry(asio::any_io_executor executor, Sources sources, DaemonFacts facts)
    : executor_(executor),
      sources_(sources),
      facts_(std::move(facts)),
      server_(executor, [this] { return metrics_->text(facts_, look()); }),
      exporting_(executor) {}

Result<> Telemetry::begin(const DaemonConfig& config) {
  const Result<> served = begin_metrics(config.metrics);
  begin_traces(config.otlp);
  CallObserver observer;
  if (metrics_ || exporter_) observer.ended = [this](const CallEnd& call) { call_ended(call); };
  observer.wants_notes = exporter_.has_value();
  sources_.task_server.observe(observer);
  sources_.controller.observe(observer);
  return served;
}

Result<> Telemetry::begin_metrics(const std::string& text) {
  TRY(const std::optional<MetricsAddress> address, parse_metrics_address(text));
  if (!address) return {};
  facts_.adopted_pods = sum(sources_.pods.counts());
  facts_.adopted_containers = sum(sources_.tasks.counts());
  metrics_.emplace();
  CHECK_OK(server_.begin(*address));
  log::info({}, "metrics at {}", text);
  return {};
}

void Telemetry::begin_traces(const std::string& target) {
  if (target == "off") return;
  otlp::Exporter::Options options;
  options.target = target;
  options.name = facts_.name;
  options.version = facts_.version;
  exporter_.emplace(executor_, std::move(options));
  exporting_.spawn(exporter_->run());
  log::info({}, "spans go to {}", target);
}

Task<> Telemetry::stop() {
  co_await server_.stop();
  if (exporter_) exporter_->stop();
  co_await exporting_.join();
}

void Telemetry::call_ended(const CallEnd& call) {
  if (metrics_) metrics_->call_ended(call);
  if (exporter_) exporter_->call_ended(call);
}

Gauges Telemetry::look() const {
  Gauges gauges;
  gauges.pods = sources_.pods.counts();
  gauges.containers = sources_.tasks.counts();
  gauges.execs = sources_.tasks.exec_count();
  gauges.task_connections = sources_.task_server.connections();
  gauges.events_waiting = sources_.events.pending();
  gauges.events_dropped = sources_.events.dropped();
  gauges.pool_work = sources_.pool.size();
  const auto work = sources_.pool.older_than(std::chrono::nanoseconds(0));
  if (!work.empty()) {
    gauges.pool_oldest_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - work.front().since)
            .count();
  }
  gauges.log_lines_dropped = log::dropped();
  if (sources_.gate != nullptr) {
    const FairGate::Totals& totals = sources_.gate->totals();
    gauges.gate_waiting = sources_.gate->waiting();
    gauges.gate_oldest_seconds = std::chrono::duration<double>(sources_.gate->oldest().age).count();
    gauges.gate_passes = totals.passes;
    gauges.gate_waited_seconds = std::chrono::duration<double>(totals.waited).count();
  }
  gauges.orphans_removed = sources_.orphans.removed();
  gauges.keeper_descriptors = sources_.keeper.held_count();
  gauges.keeper_children = sources_.keeper.children().size();
  gauges.keeper_replacements = sources_.keeper.replacements();
  if (exporter_) {
    gauges.spans_sent = exporter_->sent();
    gauges.spans_dropped = exporter_->dropped();
  }
  gauges.keeper_version = sources_.keeper.keeper_version();
  return gauges;
}

}  // namespace kuasar::daemon
