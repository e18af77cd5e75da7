#include "os/cgroup.h"

#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "os/cgroup_files.h"
#include "os/process_usage.h"
#include "support/lab.h"
#include "support/wait.h"
#include "systemd/node.h"

// Pods in cgroups that systemd made (the driver that kubeadm chooses), on whatever the node has:
// cgroup v1 under systemd-nspawn here, v2 alone under user-mode Linux (`tools/dev uml`).

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

constexpr auto kPatience = 60s;
constexpr std::int64_t kMebibyte = 1 << 20;

struct Driver {
  const char* name;
  const char* handler;
  bool systemd;
};
constexpr Driver kDrivers[] = {{"cgroupfs", kHandler, false}, {"systemd", kSystemdHandler, true}};

bool unified() {
  return fs::exists("/sys/fs/cgroup/cgroup.controllers");
}

// A pod whose cgroup the kubelet would have made.
cri::PodSandboxConfig pod_of(const Driver& driver) {
  cri::PodSandboxConfig config = node_pod(false);
  if (driver.systemd) {
    config.mutable_linux()->set_cgroup_parent(
        fmt::format("kubepods-{}.slice", config.metadata().name()));
  }
  return config;
}

// The one process with `word` in its command line.
pid_t process_with(const std::string& word) {
  for (const pid_t pid : os::all_pids()) {
    if (read_text(fmt::format("/proc/{}/cmdline", pid)).find(word) != std::string::npos) return pid;
  }
  return 0;
}

std::vector<std::string> cgroups_of(pid_t pid) {
  return os::join_cgroups(os::parse_cgroup_mounts(read_text("/proc/self/mountinfo")),
                          os::parse_proc_cgroup(read_text(fmt::format("/proc/{}/cgroup", pid))));
}

std::string control(const os::ControllerDir& dir, const char* v1, const char* v2) {
  return os::read_control(dir.file(dir.v2 ? v2 : v1)).value_or("no such file");
}

cri::LinuxContainerResources limits(std::int64_t memory, std::int64_t quota) {
  cri::LinuxContainerResources resources;
  resources.set_memory_limit_in_bytes(memory);
  resources.set_cpu_period(100000);
  resources.set_cpu_quota(quota);
  resources.set_cpu_shares(512);
  return resources;
}

void check_limits(pid_t pid, std::int64_t memory, std::int64_t quota) {
  const os::CgroupControllers found = os::find_controllers(cgroups_of(pid));
  CHECK(control(found.memory, "memory.limit_in_bytes", "memory.max") == std::to_string(memory));
  if (found.cpu.v2) {
    CHECK(control(found.cpu, "", "cpu.max") == fmt::format("{} 100000", quota));
  } else {
    CHECK(control(found.cpu, "cpu.cfs_quota_us", "") == std::to_string(quota));
    CHECK(control(found.cpu, "cpu.shares", "") == "512");
  }
}

// What a container runs: a script of the shell, or a module.
struct Workload {
  std::string script;
  std::vector<std::string> module;
};

cri::ContainerConfig limited(const cri::PodSandboxConfig& pod, const Workload& workload) {
  cri::ContainerConfig config = node_container(pod, workload.script);
  if (!workload.module.empty()) {
    config.mutable_image()->set_image(kWasmImage);
    config.clear_command();
    for (const std::string& word : workload.module) config.add_command(word);
  }
  *config.mutable_linux()->mutable_resources() = limits(64 * kMebibyte, 50000);
  return config;
}

struct Limited {
  cri::PodSandboxConfig config;
  std::string pod;
  std::string container;
  pid_t pid = 0;
};

Limited start_limited(CriClient& cri, const Driver& driver, const Workload& workload,
                      const std::string& word) {
  Limited made;
  made.config = pod_of(driver);
  const auto pod =
      cri.run_pod(made.config, workload.module.empty() ? driver.handler : kWasmHandler);
  INFO((pod ? "" : pod.error().message));
  REQUIRE(pod);
  made.pod = *pod;
  const auto container =
      start_container(cri, made.pod, made.config, limited(made.config, workload));
  INFO((container ? "" : container.error().message));
  REQUIRE(container);
  made.container = *container;
  if (!word.empty()) {
    REQUIRE(wait_until([&] { return (made.pid = process_with(word)) != 0; }, kPatience));
  }
  return made;
}

void remove_limited(CriClient& cri, const Limited& made) {
  const std::vector<std::string> dirs =
      made.pid != 0 ? cgroups_of(made.pid) : std::vector<std::string>();
  CHECK(remove_pod(cri, made.pod));
  for (const std::string& dir : dirs) {
    CAPTURE(dir);
    CHECK(wait_until([&] { return !fs::exists(dir); }, kPatience));
  }
}

// systemd itself puts a scope into the hierarchies that it uses.
void check_place(const Driver& driver, const Limited& made, const std::vector<std::string>& dirs) {
  const std::string& parent = made.config.linux().cgroup_parent();
  const std::string inside = parent + (driver.systemd ? "/cri-containerd-" : "/") + made.container;
  for (const std::string& dir : dirs) {
    CAPTURE(dir);
    CHECK(dir.find(inside) != std::string::npos);
  }
}

void check_usage(CriClient& cri, const Limited& made) {
  const auto used = [&] {
    const auto stats = cri.container_stats(made.container);
    return stats && stats->cpu().usage_core_nano_seconds().value() > 100'000'000 &&
           stats->memory().working_set_bytes().value() > 0;
  };
  CHECK(wait_until(used, kPatience));
}

void check_update(CriClient& cri, const Driver& driver, const Limited& made) {
  CHECK(cri.update_resources(made.container, limits(96 * kMebibyte, 30000)));
  check_limits(made.pid, 96 * kMebibyte, 30000);
  if (!driver.systemd) return;
  // It applies what it knows of a unit anew with every daemon-reload.
  systemctl({"daemon-reload"});
  check_limits(made.pid, 96 * kMebibyte, 30000);
}

TEST_CASE("cgroups: limits, usage and updates of a container, by either driver", "[cgroups]") {
  CriClient cri(kContainerdSocket);
  for (const Driver& driver : kDrivers) {
    CAPTURE(driver.name);
    const Limited made =
        start_limited(cri, driver, {": limited-; while :; do :; done", {}}, "limited-");
    const std::vector<std::string> dirs = cgroups_of(made.pid);
    REQUIRE(!dirs.empty());
    check_place(driver, made, dirs);
    check_limits(made.pid, 64 * kMebibyte, 50000);
    check_usage(cri, made);
    check_update(cri, driver, made);
    const auto answer = cri.exec_sync(made.container, {"cat", "/proc/self/cgroup"}, 30);
    REQUIRE(answer);
    CHECK(answer->exit_code() == 0);
    remove_limited(cri, made);
  }
}

TEST_CASE("cgroups: the kernel kills for memory, and the container says OOMKilled", "[cgroups]") {
  CriClient cri(kContainerdSocket);
  for (const Driver& driver : kDrivers) {
    CAPTURE(driver.name);
    // A file in memory cannot be swapped out here, nor does it depend on the shell's allocator.
    const Limited made = start_limited(cri, driver, {"tail /dev/zero", {}}, "");
    auto status = cri.container_status(made.container);
    const auto ended = [&] {
      status = cri.container_status(made.container);
      return status && status->state() == cri::CONTAINER_EXITED;
    };
    REQUIRE(wait_until(ended, kPatience));
    CHECK(status->exit_code() == 137);
    // containerd has taken the event before it hears of the end, but may not have looked at it yet
    // (its CRI's event monitor is another goroutine): on the one processor here that can be seen.
    CHECK(wait_until([&] { return ended() && status->reason() == "OOMKilled"; }, kPatience));
    remove_limited(cri, made);
  }
}

TEST_CASE("cgroups: the daemon dies, and its pods keep their limits and end whole", "[cgroups]") {
  CriClient cri(kContainerdSocket);
  for (const Driver& driver : kDrivers) {
    CAPTURE(driver.name);
    const Limited made = start_limited(
        cri, driver, {": whole-; sleep 7411 & sleep 7412 & while :; do sleep 1; done", {}},
        "whole-");
    const pid_t before = main_pid(kSandboxerUnit);
    systemctl({"kill", "-s", "KILL", kSandboxerUnit});
    await_new_main_pid(kSandboxerUnit, before);
    check_limits(made.pid, 64 * kMebibyte, 50000);
    REQUIRE(wait_until([&] { return cri.pod_status(made.pod).has_value(); }, kPatience));
    CHECK(cri.container_status(made.container)->state() == cri::CONTAINER_RUNNING);
    CHECK(cri.update_resources(made.container, limits(80 * kMebibyte, 40000)));
    check_limits(made.pid, 80 * kMebibyte, 40000);
    CHECK(cri.stop_container(made.container, 0));
    CHECK(wait_until([] { return process_with("7411") == 0 && process_with("7412") == 0; },
                     kPatience));
    remove_limited(cri, made);
  }
}

TEST_CASE("cgroups: a WebAssembly module by either driver, also after kill -9 of its daemon",
          "[cgroups]") {
  if (!fs::exists("/lab/wasmedge")) SKIP("this machine's archive has no WasmEdge for the node");
  CriClient cri(kContainerdSocket);
  for (const Driver& driver : kDrivers) {
    CAPTURE(driver.name);
    const Limited made = start_limited(cri, driver, {"", {"/tool.wasm", "spin"}}, "/tool.wasm");
    const std::vector<std::string> dirs = cgroups_of(made.pid);
    REQUIRE(!dirs.empty());
    check_place(driver, made, dirs);
    check_limits(made.pid, 64 * kMebibyte, 50000);
    check_usage(cri, made);

    const pid_t before = main_pid(kWasmUnit);
    systemctl({"kill", "-s", "KILL", kWasmUnit});
    await_new_main_pid(kWasmUnit, before);
    REQUIRE(wait_until([&] { return cri.pod_status(made.pod).has_value(); }, kPatience));
    check_update(cri, driver, made);
    const auto said = cri.exec_sync(made.container, {"/tool.wasm", "print", "hello"}, 30);
    INFO((said ? "" : said.error().message));
    REQUIRE(said);
    CHECK(said->stdout() == "hello\n");
    CHECK(cri.stop_container(made.container, 0));
    CHECK(cri.container_status(made.container)->exit_code() == 137);
    remove_limited(cri, made);
  }
}

TEST_CASE("cgroups: a shared PID namespace under either driver leaves nothing", "[cgroups]") {
  CriClient cri(kContainerdSocket);
  for (const Driver& driver : kDrivers) {
    CAPTURE(driver.name);
    cri::PodSandboxConfig config = pod_of(driver);
    config.mutable_linux()->mutable_security_context()->mutable_namespace_options()->set_pid(
        cri::POD);
    const auto pod = cri.run_pod(config, driver.handler);
    REQUIRE(pod);
    const auto container =
        start_container(cri, *pod, config, node_container(config, ": shared-; exec sleep 7413"));
    REQUIRE(container);
    CHECK(wait_until([] { return process_with("7413") != 0; }, kPatience));
    CHECK(process_with("kuasar-pid-init") != 0);
    CHECK(remove_pod(cri, *pod));
    CHECK(process_with("7413") == 0);
    CHECK(wait_until([] { return process_with("kuasar-pid-init") == 0; }, kPatience));
  }
}

TEST_CASE("cgroups: this node's hierarchies", "[cgroups]") {
  fmt::print("cgroups: {} on this node\n", unified() ? "v2 alone" : "v1");
  CHECK(!cgroups_of(main_pid(kContainerdUnit)).empty());
}

}  // namespace
}  // namespace kuasar::test
