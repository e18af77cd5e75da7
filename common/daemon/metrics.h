#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/call_end.h"

namespace kuasar::daemon {

/// What is looked at when somebody asks for the metrics, and not before.
struct Gauges {
  /// By state, "running"...; the states that can be are always there.
  std::map<std::string, std::size_t> pods;
  std::map<std::string, std::size_t> containers;
  std::size_t execs = 0;
  std::size_t task_connections = 0;
  std::size_t events_waiting = 0;
  std::size_t events_dropped = 0;
  /// Of the blocking pool: pieces of work that have not ended, and since when the oldest is there.
  std::size_t pool_work = 0;
  double pool_oldest_seconds = 0;
  std::uint64_t orphans_removed = 0;
  std::size_t keeper_descriptors = 0;
  std::size_t keeper_children = 0;
  /// Keepers that this daemon has connected to after the first.
  std::uint64_t keeper_replacements = 0;
  std::uint64_t log_lines_dropped = 0;
  /// Before the OCI runtime.
  std::size_t gate_waiting = 0;
  double gate_oldest_seconds = 0;
  std::uint64_t gate_passes = 0;
  double gate_waited_seconds = 0;
  std::string keeper_version;
  /// To an OpenTelemetry receiver.
  std::size_t spans_sent = 0;
  std::size_t spans_dropped = 0;
};

/// What does not change while a daemon runs.
struct DaemonFacts {
  std::string name;
  std::string version;
  /// Of the state directory, this start included.
  std::uint64_t starts = 1;
  std::size_t adopted_pods = 0;
  std::size_t adopted_containers = 0;
};

/// The metrics of docs/METRICS.md. Owned by the daemon's service; lives on the io thread. Counting
/// a call allocates nothing once its method and code have been seen.
class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void call_ended(const CallEnd& call);
  /// Prometheus' text format, version 0.0.4.
  std::string text(const DaemonFacts& facts, const Gauges& gauges);

 private:
  struct Registry;
  std::unique_ptr<Registry> registry_;
};

/// How many daemons have begun on this state directory, this one included: reads, raises and writes
/// the number in `file`. 1 when there is none, or none that one can read.
std::uint64_t count_start(const std::string& file);

}  // namespace kuasar::daemon
