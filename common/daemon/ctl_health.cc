#include "daemon/ctl_health.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/version.h"
#include "keeper/client.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "os/pidfd.h"
#include "task/convert.h"
#include "task/events.h"

namespace kuasar::daemon {
namespace {

using ctl::v1::HealthResponse;

/// An OCI runtime that runs longer, or waits longer for its turn, is reported.
constexpr std::uint64_t kSlowRuntime = 10;
constexpr std::uint64_t kSlowGate = 1;

std::uint64_t age_in_seconds(pid_t pid) {
  const Result<unsigned long long> start = os::process_start_time(pid);
  if (!start) return 0;
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const std::uint64_t began = *start / static_cast<unsigned long>(::sysconf(_SC_CLK_TCK));
  const auto seconds = static_cast<std::uint64_t>(now.tv_sec);
  return seconds > began ? seconds - began : 0;
}

// OciRuntime's processes are named "<container>/<exec>/<verb>/<attempt>" (oci/runtime.cc), those of
// containers have no attempt.
void add_slow_runtimes(const keeper::KeeperClient& keeper, HealthResponse& response) {
  for (const auto& [key, child] : keeper.children()) {
    if (std::count(key.begin(), key.end(), '/') != 3) continue;
    if (os::pidfd_exited(child.pidfd.get())) continue;
    const std::uint64_t seconds = age_in_seconds(child.pid);
    if (seconds < kSlowRuntime) continue;
    HealthResponse::Slow* slow = response.add_slow();
    slow->set_what(fmt::format("OCI runtime, pid {}: {}", child.pid, key));
    slow->set_seconds(seconds);
  }
}

void add_gate(const FairGate& gate, HealthResponse& response) {
  const FairGate::Oldest oldest = gate.oldest();
  const auto seconds = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::seconds>(oldest.age).count());
  if (seconds < kSlowGate) return;
  HealthResponse::Slow* slow = response.add_slow();
  slow->set_what(
      fmt::format("wait of pod {} for the OCI runtime ({} runs wait)", oldest.key, gate.waiting()));
  slow->set_seconds(seconds);
}

}  // namespace

std::function<void(HealthResponse&)> describe_daemon(std::string name, const DaemonConfig& config,
                                                     const keeper::KeeperClient& keeper,
                                                     const task::EventPublisher& events,
                                                     const FairGate* gate) {
  const auto began = task::to_timestamp(std::chrono::system_clock::now());
  return
      [name = std::move(name), &config, &keeper, &events, gate, began](HealthResponse& response) {
        response.set_name(name);
        response.set_version(std::string(version()));
        response.set_pid(::getpid());
        *response.mutable_started_at() = began;
        response.set_listen(config.listen);
        response.set_dir(config.dir);
        response.set_containerd(config.containerd);
        response.set_keeper_pid(keeper.keeper_pid());
        response.set_keeper_version(keeper.keeper_version());
        response.set_events_waiting(events.pending());
        response.set_events_dropped(events.dropped());
        add_slow_runtimes(keeper, response);
        if (gate != nullptr) add_gate(*gate, response);
      };
}

}  // namespace kuasar::daemon
