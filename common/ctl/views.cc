#include "ctl/views.h"

#include <fmt/format.h>
#include <google/protobuf/util/time_util.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <filesystem>
#include <sstream>

#include "base/files.h"
#include "ctl/print.h"

namespace kuasar::ctl {
namespace {

namespace json = boost::json;
using google::protobuf::Timestamp;
using google::protobuf::util::TimeUtil;

/// Events that wait while containerd is there to take them are few.
constexpr std::uint64_t kManyEvents = 100;

// Names of the .proto's enumerators, in lower case.
std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string state_of(const api::Pod& pod) {
  if (!pod.problem().empty()) return "unusable";
  return lower(state::v1::SandboxState::Phase_Name(pod.state().phase()));
}

std::string state_of(const state::v1::ContainerState& container) {
  return lower(state::v1::ContainerState::Phase_Name(container.phase()));
}

bool has_ended(const state::v1::ContainerState& container) {
  return container.phase() == state::v1::ContainerState::STOPPED ||
         container.phase() == state::v1::ContainerState::DELETING;
}

std::string shown_state(const state::v1::ContainerState& container) {
  if (!has_ended(container)) return state_of(container);
  return fmt::format("exited {}", container.exit_status());
}

std::string time_text(const Timestamp& time) {
  return time.seconds() == 0 && time.nanos() == 0 ? "" : TimeUtil::ToString(time);
}

std::string age_of(const Timestamp& time, Now now) {
  if (time.seconds() == 0) return "";
  return age(std::chrono::system_clock::to_time_t(now) - time.seconds());
}

std::string pid_text(std::int64_t pid) {
  return pid > 0 ? std::to_string(pid) : "";
}

json::object container_row(const api::Container& container) {
  const state::v1::ContainerState& state = container.state();
  json::object row;
  row["id"] = state.id();
  row["name"] = container.name();
  row["state"] = state_of(state);
  row["pid"] = has_ended(state) ? 0 : state.init().pid();
  row["execs"] = state.execs_size();
  if (has_ended(state)) {
    row["exit_status"] = state.exit_status();
    row["exited_at"] = time_text(state.exited_at());
  }
  return row;
}

std::string word_count(std::uint64_t count, const char* word) {
  return fmt::format("{} {}{}", count, word, count == 1 ? "" : "s");
}

// The first number of a file; 0 when there is none.
unsigned long long number_in(const std::filesystem::path& file) {
  const Result<std::string> text = read_file(file, 4096);
  return text ? std::strtoull(text->c_str(), nullptr, 10) : 0;
}

// "key number" lines, as in cpu.stat and memory.stat.
unsigned long long number_of(const std::filesystem::path& file, const std::string& key) {
  const Result<std::string> text = read_file(file, 65536);
  if (!text) return 0;
  std::istringstream lines(*text);
  std::string name;
  unsigned long long value = 0;
  while (lines >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

unsigned long long less(unsigned long long whole, unsigned long long part) {
  return whole > part ? whole - part : 0;
}

}  // namespace

std::string pods_text(const std::vector<PodList>& lists, Now now) {
  const bool several = lists.size() > 1;
  std::vector<std::string> headings{"ID", "NAMESPACE", "NAME", "UID", "STATE", "AGE", "PID"};
  if (several) headings.insert(headings.begin(), "DAEMON");
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const std::string& daemon, std::vector<std::string> row) {
    if (several) row.insert(row.begin(), daemon);
    rows.push_back(std::move(row));
  };
  for (const PodList& list : lists) {
    for (const api::Pod& pod : list.pods) {
      const auto& metadata = pod.state().config().metadata();
      add(list.daemon, {short_id(pod.state().id()), metadata.namespace_(), metadata.name(),
                        metadata.uid(), state_of(pod), age_of(pod.state().created_at(), now),
                        pid_text(pod.state().pid_init().pid())});
      for (const api::Container& container : pod.containers()) {
        const state::v1::ContainerState& state = container.state();
        const std::int64_t pid = has_ended(state) ? 0 : state.init().pid();
        add("", {"  " + short_id(state.id()), "", container.name(), "", shown_state(state),
                 has_ended(state) ? age_of(state.exited_at(), now) : "", pid_text(pid)});
      }
    }
  }
  if (rows.empty()) return "no pods\n";
  return table(headings, rows);
}

json::value pods_json(const std::vector<PodList>& lists) {
  json::array pods;
  for (const PodList& list : lists) {
    for (const api::Pod& pod : list.pods) {
      const auto& metadata = pod.state().config().metadata();
      json::object row;
      row["daemon"] = list.daemon;
      row["id"] = pod.state().id();
      row["namespace"] = metadata.namespace_();
      row["name"] = metadata.name();
      row["uid"] = metadata.uid();
      row["attempt"] = metadata.attempt();
      row["state"] = state_of(pod);
      row["created_at"] = time_text(pod.state().created_at());
      row["problem"] = pod.problem();
      json::array containers;
      for (const api::Container& one : pod.containers()) containers.push_back(container_row(one));
      row["containers"] = std::move(containers);
      pods.push_back(std::move(row));
    }
  }
  return json::object{{"pods", std::move(pods)}};
}

std::string pod_ids(const std::vector<PodList>& lists) {
  std::string out;
  for (const PodList& list : lists) {
    for (const api::Pod& pod : list.pods) out += pod.state().id() + "\n";
  }
  return out;
}

json::value pod_json(const std::string& daemon, const api::Pod& pod) {
  json::object out;
  out["daemon"] = daemon;
  out["sandbox"] = to_json(pod.state());
  out["problem"] = pod.problem();
  json::array containers;
  for (const api::Container& container : pod.containers()) {
    json::object one;
    one["name"] = container.name();
    one["stdio"] = container.stdio();
    const json::value record = to_json(container.state());
    for (const auto& member : record.as_object()) one[member.key()] = member.value();
    containers.push_back(std::move(one));
  }
  out["containers"] = std::move(containers);
  return out;
}

std::vector<std::string> findings_of(const DaemonHealth& daemon) {
  std::vector<std::string> all;
  if (!daemon.error.empty()) return {daemon.error};
  const api::HealthResponse& health = daemon.health;
  for (const auto& slow : health.slow()) {
    all.push_back(fmt::format("takes {} s already: {}", slow.seconds(), slow.what()));
  }
  for (const auto& unusable : health.unusable()) {
    all.push_back(fmt::format("pod {} is left alone: {}", unusable.id(), unusable.words()));
  }
  for (const std::string& path : health.unexplained()) {
    all.push_back(fmt::format("{} is none of ours; look at it and remove it", path));
  }
  if (health.keeper_pid() <= 0) all.push_back("it has no keeper; its log says why");
  if (health.keeper_version() != health.version()) {
    all.push_back(
        fmt::format("its keeper is of version {}; install the suite whole and restart the daemon",
                    health.keeper_version()));
  }
  if (health.events_waiting() > kManyEvents) {
    all.push_back(fmt::format("{} wait for containerd ({}); is it running?",
                              word_count(health.events_waiting(), "event"), health.containerd()));
  }
  return all;
}

std::string health_text(const std::vector<DaemonHealth>& daemons, Now now) {
  std::string out;
  for (const DaemonHealth& daemon : daemons) {
    const std::vector<std::string> findings = findings_of(daemon);
    const api::HealthResponse& health = daemon.health;
    out += fmt::format("{}: {}\n", daemon.error.empty() ? health.name() : daemon.socket,
                       findings.empty() ? "well" : word_count(findings.size(), "finding"));
    if (daemon.error.empty()) {
      out += fmt::format("  version {}, pid {}, up {}; keeper {}, pid {}\n", health.version(),
                         health.pid(), age_of(health.started_at(), now), health.keeper_version(),
                         health.keeper_pid());
      out += fmt::format("  {}, {}, {}; {} waiting, {} dropped\n", word_count(health.pods(), "pod"),
                         word_count(health.containers(), "container"),
                         word_count(health.execs(), "exec"),
                         word_count(health.events_waiting(), "event"), health.events_dropped());
    }
    for (const std::string& finding : findings) out += paragraph("- " + finding, 2);
  }
  return out;
}

json::value health_json(const std::vector<DaemonHealth>& daemons) {
  json::array all;
  for (const DaemonHealth& daemon : daemons) {
    const api::HealthResponse& health = daemon.health;
    json::object one;
    one["socket"] = daemon.socket;
    json::array findings;
    for (const std::string& finding : findings_of(daemon)) findings.emplace_back(finding);
    one["findings"] = std::move(findings);
    one["answers"] = daemon.error.empty();
    if (daemon.error.empty()) {
      one["name"] = health.name();
      one["version"] = health.version();
      one["pid"] = health.pid();
      one["started_at"] = time_text(health.started_at());
      one["listen"] = health.listen();
      one["dir"] = health.dir();
      one["containerd"] = health.containerd();
      one["keeper"] =
          json::object{{"pid", health.keeper_pid()}, {"version", health.keeper_version()}};
      one["pods"] = health.pods();
      one["containers"] = health.containers();
      one["execs"] = health.execs();
      one["events_waiting"] = health.events_waiting();
      one["events_dropped"] = health.events_dropped();
    }
    all.push_back(std::move(one));
  }
  return json::object{{"daemons", std::move(all)}};
}

// The files are those of cgroup-v1(7) and of the kernel's cgroup-v2.rst; a directory has those of
// its own controllers.
Usage read_usage(const std::vector<std::string>& cgroups) {
  Usage usage;
  for (const std::filesystem::path dir : cgroups) {
    constexpr double kNano = 1e9;
    constexpr double kMicro = 1e6;
    usage.cpu_seconds += static_cast<double>(number_in(dir / "cpuacct.usage")) / kNano;
    usage.cpu_seconds += static_cast<double>(number_of(dir / "cpu.stat", "usage_usec")) / kMicro;
    usage.memory += less(number_in(dir / "memory.usage_in_bytes"),
                         number_of(dir / "memory.stat", "total_inactive_file"));
    usage.memory +=
        less(number_in(dir / "memory.current"), number_of(dir / "memory.stat", "inactive_file"));
    usage.pids += number_in(dir / "pids.current");
  }
  return usage;
}

std::vector<Usage> usage_of(const std::vector<PodList>& lists) {
  std::vector<Usage> all;
  for (const PodList& list : lists) {
    for (const api::Pod& pod : list.pods) {
      for (const api::Container& container : pod.containers()) {
        if (container.state().phase() != state::v1::ContainerState::RUNNING) continue;
        const auto& cgroups = container.state().cgroups();
        Usage usage = read_usage({cgroups.begin(), cgroups.end()});
        usage.daemon = list.daemon;
        usage.pod = pod.state().id();
        usage.pod_name = pod.state().config().metadata().name();
        usage.id = container.state().id();
        usage.name = container.name();
        all.push_back(std::move(usage));
      }
    }
  }
  return all;
}

std::string usage_text(const std::vector<Usage>& all) {
  if (all.empty()) return "no container is running\n";
  std::vector<std::vector<std::string>> rows;
  for (const Usage& one : all) {
    rows.push_back({short_id(one.id), one.pod_name, one.name,
                    fmt::format("{:.2f}", one.cpu_seconds), bytes(one.memory),
                    std::to_string(one.pids)});
  }
  return table({"CONTAINER", "POD", "NAME", "CPU SECONDS", "MEMORY", "PIDS"}, rows);
}

json::value usage_json(const std::vector<Usage>& all) {
  json::array rows;
  for (const Usage& one : all) {
    rows.push_back(json::object{{"daemon", one.daemon},
                                {"pod", one.pod},
                                {"container", one.id},
                                {"name", one.name},
                                {"cpu_seconds", one.cpu_seconds},
                                {"memory_bytes", one.memory},
                                {"pids", one.pids}});
  }
  return json::object{{"containers", std::move(rows)}};
}

}  // namespace kuasar::ctl
