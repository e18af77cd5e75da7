#include "daemon/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "os/process_usage.h"

namespace kuasar::daemon {
namespace {

// From a State's 100 us to a checkpoint's seconds, three to a decade.
const prometheus::Histogram::BucketBoundaries kSeconds{
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1,    0.25,    0.5,    1,     2.5,    5,     10,   30,    60};

// It ends with the pod or the process: how long it took says nothing.
constexpr std::string_view kWait = "Wait";

std::chrono::duration<double> start_time() {
  return std::chrono::system_clock::now().time_since_epoch();
}

std::size_t open_descriptors() {
  std::error_code ec;
  std::size_t count = 0;
  for (std::filesystem::directory_iterator entry("/proc/self/fd", ec), end; !ec && entry != end;
       entry.increment(ec)) {
    ++count;
  }
  return count;
}

std::uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  statm >> size >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

struct Metrics::Registry {
  struct Method {
    prometheus::Histogram* seconds = nullptr;
    std::map<Code, prometheus::Counter*> by_code;
  };

  prometheus::Registry all;
  double begun = start_time().count();
  prometheus::Family<prometheus::Counter>& calls =
      prometheus::BuildCounter()
          .Name("kuasar_rpc_handled_total")
          .Help("Calls that have ended, by their code.")
          .Register(all);
  prometheus::Family<prometheus::Histogram>& seconds =
      prometheus::BuildHistogram()
          .Name("kuasar_rpc_duration_seconds")
          .Help("From a call's arrival to its end; not of Wait.")
          .Register(all);
  // The names live as long as the servers (CallEnd).
  std::map<std::pair<std::string_view, std::string_view>, Method> methods;

  Method& method(std::string_view service, std::string_view name) {
    const auto [at, is_new] = methods.try_emplace({service, name});
    if (is_new && name != kWait) {
      at->second.seconds = &seconds.Add(
          {{"service", std::string(service)}, {"method", std::string(name)}}, kSeconds);
    }
    return at->second;
  }

  void gauge(const std::string& name, const std::string& help, double value,
             const prometheus::Labels& labels = {}) {
    prometheus::BuildGauge().Name(name).Help(help).Register(all).Add(labels).Set(value);
  }
  // What others count: raised to where they are.
  void counter(const std::string& name, const std::string& help, double value) {
    prometheus::Counter& counter =
        prometheus::BuildCounter().Name(name).Help(help).Register(all).Add({});
    counter.Increment(value - counter.Value());
  }
  void by_state(const std::string& name, const std::string& help,
                const std::map<std::string, std::size_t>& counts) {
    for (const auto& [state, count] : counts) {
      gauge(name, help, static_cast<double>(count), {{"state", state}});
    }
  }
  void tell(const DaemonFacts& facts);
  void tell(const Gauges& gauges);
  void tell_process();
};

void Metrics::Registry::tell(const DaemonFacts& facts) {
  gauge("kuasar_build_info", "1, with what runs.", 1,
        {{"program", facts.name}, {"version", facts.version}});
  counter("kuasar_starts_total", "Daemons that have begun on this state directory.",
          static_cast<double>(facts.starts));
  gauge("kuasar_adopted_pods", "Pods that this daemon took over from an earlier one.",
        static_cast<double>(facts.adopted_pods));
  gauge("kuasar_adopted_containers", "Containers that this daemon took over from an earlier one.",
        static_cast<double>(facts.adopted_containers));
}

void Metrics::Registry::tell(const Gauges& g) {
  by_state("kuasar_pods", "Pods, by state.", g.pods);
  by_state("kuasar_containers", "Containers, by state.", g.containers);
  gauge("kuasar_execs", "Processes added to containers.", static_cast<double>(g.execs));
  gauge("kuasar_task_connections", "containerd's connections to the Task API.",
        static_cast<double>(g.task_connections));
  gauge("kuasar_events_waiting", "Task events that containerd has not taken yet.",
        static_cast<double>(g.events_waiting));
  counter("kuasar_events_dropped_total", "Task events that containerd will never get.",
          static_cast<double>(g.events_dropped));
  gauge("kuasar_pool_work", "Blocking work that runs or waits for a thread.",
        static_cast<double>(g.pool_work));
  gauge("kuasar_pool_oldest_work_seconds", "Age of the oldest such work.", g.pool_oldest_seconds);
  counter("kuasar_log_lines_dropped_total", "Log lines that found no room at their reader.",
          static_cast<double>(g.log_lines_dropped));
  gauge("kuasar_gate_waiting", "Runs of the OCI runtime that wait for their turn.",
        static_cast<double>(g.gate_waiting));
  gauge("kuasar_gate_oldest_wait_seconds", "How long the first of them has waited.",
        g.gate_oldest_seconds);
  counter("kuasar_gate_passes_total", "Runs of the OCI runtime that came to the gate.",
          static_cast<double>(g.gate_passes));
  counter("kuasar_gate_wait_seconds_total", "Time that runs of the OCI runtime have waited.",
          g.gate_waited_seconds);
  counter("kuasar_orphans_removed_total", "Pods removed because containerd did not know them.",
          static_cast<double>(g.orphans_removed));
  gauge("kuasar_keeper_descriptors", "Descriptors that the keeper holds for this daemon.",
        static_cast<double>(g.keeper_descriptors));
  gauge("kuasar_keeper_children", "Processes that the keeper knows by name.",
        static_cast<double>(g.keeper_children));
  counter("kuasar_keeper_replacements_total", "Keepers that came after one that died.",
          static_cast<double>(g.keeper_replacements));
  counter("kuasar_spans_sent_total", "Spans that the OpenTelemetry receiver has taken.",
          static_cast<double>(g.spans_sent));
  counter("kuasar_spans_dropped_total", "Spans that it will never get.",
          static_cast<double>(g.spans_dropped));
  prometheus::Family<prometheus::Gauge>& keeper = prometheus::BuildGauge()
                                                      .Name("kuasar_keeper_info")
                                                      .Help("1, with the keeper's version.")
                                                      .Register(all);
  // An upgrade leaves none of the old version.
  all.Remove(keeper);
  gauge("kuasar_keeper_info", "1, with the keeper's version.", 1, {{"version", g.keeper_version}});
}

// The names that every Prometheus client library has for these.
void Metrics::Registry::tell_process() {
  gauge("process_start_time_seconds", "When this daemon began.", begun);
  counter("process_cpu_seconds_total", "User and system time of this daemon.",
          os::cpu_seconds_of(::getpid()).value_or(0));
  gauge("process_resident_memory_bytes", "Resident memory, shared pages in full.",
        static_cast<double>(resident_bytes()));
  gauge("process_open_fds", "Open descriptors.", static_cast<double>(open_descriptors()));
}

Metrics::Metrics() : registry_(std::make_unique<Registry>()) {}

Metrics::~Metrics() = default;

void Metrics::call_ended(const CallEnd& call) {
  Registry::Method& method = registry_->method(call.service, call.method);
  prometheus::Counter*& counter = method.by_code[call.code];
  if (counter == nullptr) {
    counter = &registry_->calls.Add({{"service", std::string(call.service)},
                                     {"method", std::string(call.method)},
                                     {"code", std::string(code_name(call.code))}});
  }
  counter->Increment();
  if (method.seconds != nullptr) {
    method.seconds->Observe(std::chrono::duration<double>(call.ended - call.begun).count());
  }
}

std::string Metrics::text(const DaemonFacts& facts, const Gauges& gauges) {
  registry_->tell(facts);
  registry_->tell(gauges);
  registry_->tell_process();
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry_->all.Collect());
  return std::move(out).str();
}

std::uint64_t count_start(const std::string& file) {
  std::uint64_t before = 0;
  if (const Result<std::string> text = read_file(file, 64)) {
    std::from_chars(text->data(), text->data() + text->size(), before);
  }
  const std::uint64_t starts = before + 1;
  if (Result<> written = write_file(file, std::to_string(starts) + "\n"); !written) {
    log::warning({}, "{}", written.error().message);
  }
  return starts;
}

}  // namespace kuasar::daemon
