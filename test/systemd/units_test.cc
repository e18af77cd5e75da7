#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "e2e/watch.h"
#include "support/wait.h"
#include "systemd/node.h"

// The units that packaging/systemd installs: their order at boot, and what `systemctl restart` and
// `systemctl kill` do to pods.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience(30);

unsigned long long active_since(const std::string& unit) {
  return std::strtoull(unit_property(unit, "ActiveEnterTimestampMonotonic").c_str(), nullptr, 10);
}

fs::path mount_namespace(pid_t pid) {
  return fs::read_symlink(fmt::format("/proc/{}/ns/mnt", pid));
}

// Numbered lines until SIGTERM, which ends it with 42.
constexpr char kWriter[] =
    "trap 'exit 42' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done";

// The number of lines in a writer's log, each of which must be the next one.
int count_lines_without_gap(const NodePod& pod) {
  const auto log = parse_cri_log(read_text(pod.log));
  REQUIRE(log.has_value());
  std::istringstream lines(log->out);
  int next = 0;
  for (std::string line; std::getline(lines, line); ++next) {
    if (line != fmt::format("line {}", next)) {
      FAIL("\"" << line << "\" where line " << next << " was due in " << pod.log);
    }
  }
  return next;
}

void check_exec(CriClient& cri, const NodePod& pod) {
  const auto said = cri.exec_sync(pod.container, {"sh", "-c", "echo hello; exit 3"}, 20);
  INFO("ExecSync: " << (said ? said->stderr() : said.error().message));
  REQUIRE(said.has_value());
  CHECK(said->stdout() == "hello\n");
  CHECK(said->exit_code() == 3);
}

cri::ContainerStatus await_end(CriClient& cri, const std::string& container) {
  cri::ContainerStatus last;
  const bool ended = wait_until(
      [&] {
        const auto status = cri.container_status(container);
        if (status) last = *status;
        return last.state() == cri::CONTAINER_EXITED;
      },
      kPatience);
  INFO(last.Utf8DebugString());
  REQUIRE(ended);
  return last;
}

struct Step {
  std::vector<std::string> systemctl;
  std::string unit;
};

// Every pod gets a container that ends, with a code of its own, while the step is under way.
void take_step(CriClient& cri, const std::vector<NodePod>& pods, const Step& step) {
  CAPTURE(step.systemctl);
  const pid_t before = main_pid(step.unit);
  std::vector<std::string> ending;
  for (const NodePod& pod : pods) {
    const cri::ContainerConfig config = node_container(
        pod.config, fmt::format("until [ -e /tmp/go ]; do sleep 0.01; done; sleep 0.05; exit {}",
                                10 + ending.size()));
    const auto started = start_container(cri, pod.id, pod.config, config);
    INFO((started ? "" : started.error().message));
    REQUIRE(started.has_value());
    ending.push_back(*started);
    const auto told = cri.exec_sync(ending.back(), {"touch", "/tmp/go"}, 20);
    REQUIRE(told.has_value());
  }
  systemctl(step.systemctl);
  await_new_main_pid(step.unit, before);
  for (std::size_t i = 0; i < pods.size(); ++i) {
    check_exec(cri, pods[i]);
    const cri::ContainerStatus end = await_end(cri, ending[i]);
    CHECK(end.exit_code() == 10 + static_cast<int>(i));
    REQUIRE(cri.remove_container(ending[i]).has_value());
  }
}

std::vector<NodePod> start_writers(CriClient& cri) {
  std::vector<NodePod> pods;
  for (const auto& config :
       {node_pod(true), node_pod(false), node_pod(true, cri::POD), node_pod(false, cri::POD)}) {
    auto pod = start_pod(cri, config, kWriter);
    INFO((pod ? "" : pod.error().message));
    REQUIRE(pod.has_value());
    pods.push_back(std::move(*pod));
  }
  return pods;
}

void check_pods(CriClient& cri, const std::vector<NodePod>& pods) {
  for (const NodePod& pod : pods) {
    const auto status = cri.pod_status(pod.id);
    REQUIRE(status.has_value());
    CHECK(status->status().state() == cri::SANDBOX_READY);
    const auto container = cri.container_status(pod.container);
    REQUIRE(container.has_value());
    CHECK(container->state() == cri::CONTAINER_RUNNING);
  }
}

}  // namespace

TEST_CASE("units: keeper, sandboxer and containerd start in this order, in one mount namespace",
          "[systemd]") {
  CriClient cri(kContainerdSocket);
  REQUIRE(cri.version(kPatience).has_value());
  for (const char* unit : {kKeeperUnit, kSandboxerUnit, kContainerdUnit}) {
    CAPTURE(unit);
    CHECK(unit_property(unit, "ActiveState") == "active");
    CHECK(unit_property(unit, "NRestarts") == "0");
    CHECK(mount_namespace(main_pid(unit)) == mount_namespace(1));
  }
  CHECK(active_since(kKeeperUnit) < active_since(kSandboxerUnit));
  CHECK(active_since(kSandboxerUnit) < active_since(kContainerdUnit));
  CHECK(journal_count(kSandboxerUnit, " listens on /run/runc-sandboxer.sock") == 1);
  // The priority that stands in front of a line is for journald.
  CHECK(journal_count(kSandboxerUnit, "<6>") == 0);
}

TEST_CASE("units: what the keeper starts has a service's limit of open files, not the keeper's",
          "[systemd]") {
  CriClient cri(kContainerdSocket);
  REQUIRE(cri.version(kPatience).has_value());
  const auto pod = start_pod(cri, node_pod(false, cri::POD), "exec sleep 3600");
  REQUIRE(pod.has_value());
  // Not a container: what runc makes of its own limit is runc's.
  const auto found = run_program({"pgrep", "-x", "kuasar-pid-init"});
  REQUIRE((found && found->code == 0));
  std::istringstream limits(
      read_text(fmt::format("/proc/{}/limits", std::atoi(found->output.c_str()))));
  std::string soft;
  for (std::string line; std::getline(limits, line);) {
    if (line.starts_with("Max open files")) std::istringstream(line.substr(14)) >> soft;
  }
  CHECK(soft == "1024");
  REQUIRE(remove_pod(cri, pod->id).has_value());
}

TEST_CASE("units: systemctl restart and kill of either, and of containerd, with pods running",
          "[systemd]") {
  CriClient cri(kContainerdSocket);
  REQUIRE(cri.version(kPatience).has_value());
  const std::vector<NodePod> pods = start_writers(cri);
  Watch watch(kContainerdSocket, pods.size(), pods.size());
  REQUIRE(watch.ask_more(3));
  for (const Step& step : std::vector<Step>{
           {{"restart", kSandboxerUnit}, kSandboxerUnit},
           {{"kill", "-s", "KILL", kSandboxerUnit}, kSandboxerUnit},
           {{"kill", "-s", "KILL", "--kill-whom=main", kKeeperUnit}, kKeeperUnit},
           {{"kill", "-s", "KILL", kKeeperUnit}, kKeeperUnit},
           {{"restart", kKeeperUnit}, kKeeperUnit},
           {{"restart", kSandboxerUnit}, kSandboxerUnit},
       }) {
    take_step(cri, pods, step);
    REQUIRE(watch.ask_more(10));
    CAPTURE(step.systemctl);
    REQUIRE(watch.complaint() == "");
  }
  watch.stop();
  fmt::print("units: {} listings with all pods READY and containers RUNNING\n", watch.asked());

  const pid_t before = main_pid(kContainerdUnit);
  systemctl({"restart", kContainerdUnit});
  await_new_main_pid(kContainerdUnit, before);
  REQUIRE(cri.version(kPatience).has_value());
  check_pods(cri, pods);

  int lines = 0;
  for (const NodePod& pod : pods) {
    check_exec(cri, pod);
    REQUIRE(cri.stop_container(pod.container, 10).has_value());
    CHECK(await_end(cri, pod.container).exit_code() == 42);
    lines += count_lines_without_gap(pod);
    REQUIRE(remove_pod(cri, pod.id).has_value());
  }
  fmt::print("units: {} log lines of {} containers without a gap\n", lines, pods.size());
  CHECK(lines > 0);
}

}  // namespace kuasar::test
