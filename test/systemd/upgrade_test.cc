#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/wait.h"
#include "systemd/node.h"

// Another version of the suite is installed and `systemctl restart` run while a kubelet goes on
// working: no call may fail, and the keeper changes in place.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience(30);
constexpr std::chrono::seconds kBetweenUpgrades(2);
constexpr int kWorkers = 3;

std::chrono::seconds load_time() {
  const char* text = std::getenv("KUASAR_SYSTEMD_SECONDS");
  return std::chrono::seconds(text == nullptr ? 20 : std::atoi(text));
}

// Calls of a kubelet, counted and timed, on threads of its own until it is stopped.
class Load {
 public:
  Load() {
    for (int i = 0; i < kWorkers; ++i) {
      workers_.emplace_back([this, i] { work(i); });
    }
  }
  ~Load() { stop(); }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  void stop() {
    stopping_ = true;
    for (std::thread& worker : workers_) {
      if (worker.joinable()) worker.join();
    }
  }
  std::vector<std::string> failures() {
    const std::lock_guard lock(mutex_);
    return failures_;
  }
  int calls() const { return calls_; }
  int rounds() const { return rounds_; }
  std::chrono::milliseconds slowest() const { return slowest_; }

 private:
  template <typename Call>
  auto timed(const char* name, const Call& call) {
    const auto start = Clock::now();
    auto result = call();
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
    const std::lock_guard lock(mutex_);
    ++calls_;
    slowest_ = std::max(slowest_, took);
    if (!result) {
      failures_.push_back(
          fmt::format("{} after {} ms: {}", name, took.count(), result.error().message));
    }
    return result;
  }

  void work(int number) {
    CriClient cri(kContainerdSocket);
    while (!stopping_) {
      if (!round(cri, number)) return;
      ++rounds_;
    }
  }

  // The life of one pod: false after a call that failed.
  bool round(CriClient& cri, int number) {
    const cri::PodSandboxConfig pod =
        node_pod(number == 0, number == 2 ? cri::POD : cri::CONTAINER);
    const auto id = timed("RunPodSandbox", [&] { return cri.run_pod(pod, kHandler); });
    if (!id) return false;
    for (int i = 0; i < 3; ++i) {
      if (!container(cri, *id, pod)) return false;
    }
    return timed("StopPodSandbox", [&] { return cri.stop_pod(*id); }).has_value() &&
           timed("RemovePodSandbox", [&] { return cri.remove_pod(*id); }).has_value();
  }

  bool container(CriClient& cri, const std::string& pod, const cri::PodSandboxConfig& config) {
    const cri::ContainerConfig wanted = node_container(config, "exec sleep 3600");
    const auto id =
        timed("CreateContainer", [&] { return cri.create_container(pod, wanted, config); });
    if (!id) return false;
    if (!timed("StartContainer", [&] { return cri.start_container(*id); })) return false;
    for (int i = 0; i < 3; ++i) {
      const auto said = timed("ExecSync", [&] {
        return cri.exec_sync(*id, {"sh", "-c", "echo $PPID; exit 5"}, 30);
      });
      if (!said) return false;
      if (said->exit_code() != 5 || said->stdout() != "0\n") {
        note(fmt::format("ExecSync: exit code {}, output \"{}\"", said->exit_code(),
                         said->stdout()));
        return false;
      }
    }
    return timed("StopContainer", [&] { return cri.stop_container(*id, 0); }).has_value() &&
           timed("RemoveContainer", [&] { return cri.remove_container(*id); }).has_value();
  }

  void note(std::string words) {
    const std::lock_guard lock(mutex_);
    failures_.push_back(std::move(words));
  }

  std::atomic<bool> stopping_{false};
  std::atomic<int> calls_{0};
  std::atomic<int> rounds_{0};
  std::mutex mutex_;
  std::chrono::milliseconds slowest_{0};
  std::vector<std::string> failures_;
  std::vector<std::thread> workers_;
};

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text;
}

}  // namespace

TEST_CASE("T27: restarts with another version under load fail no call, the keeper changes in place",
          "[systemd]") {
  CriClient cri(kContainerdSocket);
  REQUIRE(cri.version(kPatience).has_value());
  const pid_t keeper = main_pid(kKeeperUnit);
  const std::size_t upgrades_before = journal_count(kKeeperUnit, " has taken over");
  Load load;
  const auto end = Clock::now() + load_time();
  std::size_t restarts = 0;
  std::chrono::milliseconds longest(0);
  while (Clock::now() < end && load.failures().empty()) {
    install(restarts % 2 == 0 ? Version::kNext : Version::kThis);
    const pid_t daemon = main_pid(kSandboxerUnit);
    const auto start = Clock::now();
    systemctl({"restart", kSandboxerUnit});
    longest = std::max(longest,
                       std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start));
    await_new_main_pid(kSandboxerUnit, daemon);
    ++restarts;
    // The load itself is what is waited for: some of it has to run against each version.
    const int rounds = load.rounds();
    const auto next = Clock::now() + kBetweenUpgrades;
    wait_until(
        [&] { return !load.failures().empty() || (Clock::now() > next && load.rounds() > rounds); },
        kPatience);
  }
  load.stop();
  fmt::print(
      "upgrade: {} restarts (the longest {} ms), {} calls on {} pods, {} failed, the slowest took "
      "{} ms\n",
      restarts, longest.count(), load.calls(), load.rounds(), load.failures().size(),
      load.slowest().count());
  INFO("failed calls:" << joined(load.failures()));
  CHECK(load.failures().empty());
  CHECK(load.rounds() > 0);
  CHECK(main_pid(kKeeperUnit) == keeper);
  CHECK(journal_count(kKeeperUnit, " has taken over") - upgrades_before == restarts);
  CHECK(unit_property(kKeeperUnit, "NRestarts") == "0");
  CHECK(unit_property(kSandboxerUnit, "NRestarts") == "0");
}

TEST_CASE("upgrade: a new keeper that cannot take over leaves the old one serving", "[systemd]") {
  CriClient cri(kContainerdSocket);
  REQUIRE(cri.version(kPatience).has_value());
  install(Version::kThis);
  systemctl({"restart", kSandboxerUnit});
  const auto pod = start_pod(cri, node_pod(true), "exec sleep 3600");
  REQUIRE(pod.has_value());
  const pid_t keeper = main_pid(kKeeperUnit);
  const fs::path program = fs::read_symlink(fmt::format("/proc/{}/exe", keeper));

  install(Version::kNext);
  for (const char* impostor : {"/bin/false", "/bin/true"}) {
    CAPTURE(impostor);
    install_program(impostor, kKeeperProgram);
    const std::size_t refused = journal_count(kKeeperUnit, "the new keeper is refused");
    const std::size_t told = journal_count(kSandboxerUnit, "the keeper stays at version");
    systemctl({"restart", kSandboxerUnit});
    CHECK(main_pid(kKeeperUnit) == keeper);
    CHECK(journal_count(kKeeperUnit, "the new keeper is refused") == refused + 1);
    CHECK(journal_count(kSandboxerUnit, "the keeper stays at version") == told + 1);
    const auto said = cri.exec_sync(pod->container, {"echo", "served"}, 20);
    REQUIRE(said.has_value());
    CHECK(said->stdout() == "served\n");
    const auto other = start_pod(cri, node_pod(false), "exit 9");
    REQUIRE(other.has_value());
    REQUIRE(remove_pod(cri, other->id).has_value());
  }

  // The way out is what the way in was: a keeper that can.
  const std::size_t before = journal_count(kKeeperUnit, " has taken over");
  install(Version::kNext);
  systemctl({"restart", kSandboxerUnit});
  CHECK(journal_count(kKeeperUnit, " has taken over") == before + 1);
  CHECK(main_pid(kKeeperUnit) == keeper);
  REQUIRE(remove_pod(cri, pod->id).has_value());
}

}  // namespace kuasar::test
