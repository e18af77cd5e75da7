#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "e2e/table.h"
#include "support/process_figures.h"
#include "support/wait.h"

// `tools/dev soak`: pods come and go for as long as one likes, and every minute the daemon or its
// keeper dies by kill -9. Not part of the table.

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kKillEvery = 60s;
constexpr auto kPodEvery = 50ms;
constexpr int kWorkers = 6;
constexpr std::size_t kShownFailures = 20;
// Beyond what the allocator keeps of a burst; a leak of 10 bytes per pod would show in an hour.
constexpr long kGrowthKib = 1024;

std::chrono::seconds duration() {
  const char* minutes = std::getenv("KUASAR_SOAK_MINUTES");
  return std::chrono::minutes(minutes != nullptr ? std::atoi(minutes) : 60);
}

/// When the victims of kill -9 were away.
class Kills {
 public:
  void begin(const std::string& victim) {
    const std::lock_guard lock(mutex_);
    all_.push_back({victim, Clock::now(), std::nullopt});
  }
  void end() {
    const std::lock_guard lock(mutex_);
    all_.back().ready = Clock::now();
  }
  /// Whether something that began and ended then was under way at a kill.
  bool touched(Clock::time_point begun, Clock::time_point ended) const {
    const std::lock_guard lock(mutex_);
    return std::any_of(all_.begin(), all_.end(), [&](const Kill& kill) {
      return begun <= kill.ready.value_or(Clock::time_point::max()) && ended >= kill.at;
    });
  }
  std::size_t count(const std::string& victim) const {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::count_if(
        all_.begin(), all_.end(), [&](const Kill& kill) { return kill.victim == victim; }));
  }

 private:
  struct Kill {
    std::string victim;
    Clock::time_point at;
    std::optional<Clock::time_point> ready;
  };
  mutable std::mutex mutex_;
  std::vector<Kill> all_;
};

/// What became of the operations, by name. Safe from several threads.
class Tally {
 public:
  explicit Tally(const Kills& kills) : kills_(kills) {}

  template <typename Work>
  bool run(const std::string& name, Work work) {
    const auto begun = Clock::now();
    const auto done = work();
    const auto ended = Clock::now();
    const bool excused = !done && kills_.touched(begun, ended);
    const std::lock_guard lock(mutex_);
    Row& row = rows_[name];
    row.ms.push_back(std::chrono::duration<float, std::milli>(ended - begun).count());
    if (!done) ++(excused ? row.cut : row.failed);
    if (!done && !excused && failures_.size() < kShownFailures) {
      failures_.push_back(name + ": " + done.error().message);
    }
    return done.has_value();
  }

  std::size_t failed() const {
    const std::lock_guard lock(mutex_);
    std::size_t all = 0;
    for (const auto& [name, row] : rows_) all += row.failed;
    return all;
  }
  const std::vector<std::string>& failures() const { return failures_; }
  void print() {
    fmt::print("soak {:<16} {:>8} {:>8} {:>14} {:>9} {:>9} {:>9}\n", "operation", "calls", "failed",
               "cut by a kill", "p50 ms", "p99 ms", "max ms");
    for (auto& [name, row] : rows_) {
      std::sort(row.ms.begin(), row.ms.end());
      const auto at = [&](double part) {
        return row.ms[static_cast<std::size_t>(part * static_cast<double>(row.ms.size() - 1))];
      };
      fmt::print("soak {:<16} {:>8} {:>8} {:>14} {:>9.1f} {:>9.1f} {:>9.1f}\n", name, row.ms.size(),
                 row.failed, row.cut, at(0.5), at(0.99), at(1));
    }
  }

 private:
  struct Row {
    std::vector<float> ms;
    std::size_t failed = 0;
    std::size_t cut = 0;
  };
  const Kills& kills_;
  mutable std::mutex mutex_;
  std::map<std::string, Row> rows_;
  std::vector<std::string> failures_;
};

/// The pods' lives, on threads of their own.
class Churn {
 public:
  Churn(Case& e, Tally& tally, Clock::time_point end)
      : e_(e), tally_(tally), end_(end), next_(Clock::now()) {
    for (int i = 0; i < kWorkers; ++i) workers_.emplace_back([this] { work(); });
  }
  /// Waits for the last pod.
  void join() { workers_.clear(); }
  int pods() const { return count_; }

 private:
  void work() {
    while (Clock::now() < end_) {
      Clock::time_point turn;
      {
        const std::lock_guard lock(mutex_);
        turn = next_ = std::max(next_ + kPodEvery, Clock::now());
      }
      std::this_thread::sleep_until(turn);
      live(count_++);
    }
  }

  // Every third container ends of itself, the others are stopped; every fifth pod has a network of
  // its own, every seventh a shared PID namespace.
  void live(int number) {
    cri::PodSandboxConfig config = number % 5 == 0 ? e_.pod_config() : e_.host_network_config();
    const cri::NamespaceMode pid = number % 7 == 0 ? cri::POD : cri::CONTAINER;
    namespace_options(config)->set_pid(pid);
    Pod pod;
    const auto run = [&]() -> Result<> {
      TRY(pod, e_.try_run_pod(config));
      return {};
    };
    if (!tally_.run("RunPodSandbox", run)) return;
    use(pod, number, pid);
    remove(pod);
  }

  void use(const Pod& pod, int number, cri::NamespaceMode pid) {
    const bool short_lived = number % 3 == 0;
    cri::ContainerConfig config = e_.container_config(
        {"sh", "-c", short_lived ? "echo up; exit 3" : "echo up; exec sleep 3647"});
    namespace_options(config)->set_pid(pid);
    Container container;
    const auto create = [&]() -> Result<> {
      TRY(container, e_.try_create(pod, config));
      return {};
    };
    if (!tally_.run("CreateContainer", create)) return;
    CriClient& cri = e_.cri();
    const std::string& id = container.id;
    if (!tally_.run("StartContainer", [&] { return cri.start_container(id); })) return;
    if (short_lived) {
      tally_.run("end by itself", [&] { return ended_with_3(id); });
      return;
    }
    if (number % 2 == 0) tally_.run("ExecSync", [&] { return exec(id); });
    if (number % 4 < 2) tally_.run("ContainerStats", [&] { return cri.container_stats(id); });
    if (number % 5 < 3) tally_.run("StopContainer", [&] { return cri.stop_container(id, 0); });
  }

  Result<> ended_with_3(const std::string& id) {
    Result<cri::ContainerStatus> status;
    const bool ended = wait_until(
        [&] {
          status = e_.cri().container_status(id);
          return !status || status->state() == cri::CONTAINER_EXITED;
        },
        30s);
    if (!status) return fail(status.error());
    if (ended && status->exit_code() == 3) return {};
    return fail(Code::kInternal, "container {}: ended {}, exit code {}", id, ended,
                status->exit_code());
  }

  Result<> exec(const std::string& id) {
    TRY(const cri::ExecSyncResponse answer, e_.cri().exec_sync(id, {"echo", "well"}, 30));
    if (answer.exit_code() == 0 && answer.stdout() == "well\n") return {};
    return fail(Code::kInternal, "exec in {}: exit code {}, output \"{}\"", id, answer.exit_code(),
                answer.stdout());
  }

  // A kubelet repeats what was cut.
  void remove(const Pod& pod) {
    CriClient& cri = e_.cri();
    for (int attempt = 0; attempt < 30; ++attempt) {
      if (tally_.run("StopPodSandbox", [&] { return cri.stop_pod(pod.id); }) &&
          tally_.run("RemovePodSandbox", [&] { return cri.remove_pod(pod.id); })) {
        return;
      }
      std::this_thread::sleep_for(1s);
    }
  }

  Case& e_;
  Tally& tally_;
  Clock::time_point end_;
  std::mutex mutex_;
  Clock::time_point next_;
  std::atomic<int> count_{0};
  std::vector<std::jthread> workers_;
};

long private_kib(pid_t pid) {
  return static_cast<long>(memory(pid).private_dirty / 1024);
}

/// Memory of a process at moments of the same age, oldest first.
struct Growth {
  std::vector<long> kib;

  // The first tells of a process that is still growing into its work.
  void check(const std::string& name) const {
    if (kib.empty()) return;
    const auto [least, most] = std::minmax_element(kib.begin(), kib.end());
    fmt::print("soak memory of the {}: {} KiB at first, {} at last, between {} and {}\n", name,
               kib.front(), kib.back(), *least, *most);
    if (kib.size() < 3) return;
    INFO(name);
    CHECK(kib.back() <= kib[1] + kGrowthKib);
  }
};

}  // namespace

TEST_CASE("soak: pods come and go while daemon and keeper die", "[.soak]") {
  run_long_case([](Case& e) {
    e.only_ours("pods that outlive their daemons");
    const auto begun = Clock::now();
    const auto end = begun + duration();
    Kills kills;
    Tally tally(kills);
    Growth daemon;
    Growth keeper;
    Churn churn(e, tally, end);
    bool daemon_next = true;
    for (auto at = begun + kKillEvery; at < end; at += kKillEvery, daemon_next = !daemon_next) {
      std::this_thread::sleep_until(at);
      // Each has lived for two minutes then (the first daemon for one).
      if (daemon_next) {
        daemon.kib.push_back(private_kib(e.lab().sandboxer_pid()));
        kills.begin("daemon");
        e.lab().kill_sandboxer();
        e.lab().start_sandboxer();
      } else {
        keeper.kib.push_back(private_kib(e.lab().keeper_pid()));
        const pid_t old = e.lab().keeper_pid();
        kills.begin("keeper");
        e.lab().kill_keeper();
        wait_until([&] { return e.lab().keeper_pid() > 0 && e.lab().keeper_pid() != old; }, 10s);
      }
      kills.end();
      const auto minutes = std::chrono::duration_cast<std::chrono::minutes>(at - begun).count();
      fmt::print("soak minute {}: {} pods, {} operations failed\n", minutes, churn.pods(),
                 tally.failed());
      std::fflush(stdout);
    }
    std::this_thread::sleep_until(end);
    churn.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
    fmt::print("soak {} pods in {:.0f} s, {:.1f} per second; kill -9: daemon {}, keeper {}\n",
               churn.pods(), seconds, churn.pods() / seconds, kills.count("daemon"),
               kills.count("keeper"));
    tally.print();
    daemon.check("daemon");
    keeper.check("keeper");
    std::string words;
    for (const std::string& failure : tally.failures()) words += "\n  " + failure;
    INFO("failed:" << words);
    CHECK(tally.failed() == 0);
    const auto left = e.cri().list_pods();
    REQUIRE(left);
    CHECK(left->empty());
  });
}

}  // namespace kuasar::test
