#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/files.h"
#include "containerd/cgroups/v1/metrics.pb.h"
#include "containerd/cgroups/v2/metrics.pb.h"
#include "containerd/runc/v1/options.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "e2e/table.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"
#include "os/oom_score.h"
#include "os/spawn.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"
#include "support/wait.h"
#include "task/any.h"

// Limits, usage, the OOM killer, pause and checkpoints.

namespace kuasar::test {
namespace {

namespace task_api = ::containerd::task::v3;
using Catch::Matchers::ContainsSubstring;

constexpr std::chrono::seconds kPatience(20);
constexpr std::int64_t kMiB = 1 << 20;
// google.rpc.Code.
constexpr int kOk = 0;
constexpr int kFailedPrecondition = 9;

// Prints the first of the files that there is: v1's or v2's.
std::string either(const std::string& v1, const std::string& v2) {
  return fmt::format("cat /sys/fs/cgroup/{} 2>/dev/null || cat /sys/fs/cgroup/{}", v1, v2);
}
const std::string kMemoryLimit = either("memory/memory.limit_in_bytes", "memory.max");

cri::ContainerConfig limited(Case& e, const std::string& script, std::int64_t memory) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", script});
  cri::LinuxContainerResources& limits = *config.mutable_linux()->mutable_resources();
  limits.set_memory_limit_in_bytes(memory);
  limits.set_memory_swap_limit_in_bytes(memory);
  return config;
}

// More than the limit, in one piece.
const std::string kHog = "dd if=/dev/zero of=/dev/null bs=128M count=1";

template <typename Request>
TtrpcProbe::Reply ask(Case& e, const std::string& method, const Container& container) {
  TtrpcProbe probe(e.lab().dir() / "task.sock");
  Request request;
  request.set_id(container.id);
  return probe.call(method, request);
}

containerd::v1::types::Status task_status(Case& e, const Container& container) {
  const TtrpcProbe::Reply reply = ask<task_api::StateRequest>(e, "State", container);
  task_api::StateResponse state;
  REQUIRE(state.ParseFromString(reply.payload));
  return state.status();
}

std::string inside(Case& e, const Container& container, const std::string& script) {
  const auto answer = e.cri().exec_sync(container.id, {"sh", "-c", script}, 10);
  INFO("`" << script << "` said: " << (answer ? answer->stderr() : answer.error().message));
  REQUIRE(answer);
  REQUIRE(answer->exit_code() == 0);
  return trimmed(answer->stdout());
}

// The kernel's own figures of a container, by a process of it.
os::CgroupControllers cgroups_of(const std::string& command) {
  const std::set<pid_t> pids = processes_with(command);
  REQUIRE_FALSE(pids.empty());
  const auto dirs = os::own_cgroups_of(*pids.begin());
  REQUIRE(dirs);
  return os::find_controllers(*dirs);
}

// Nanoseconds.
std::uint64_t kernel_cpu_time(const os::CgroupControllers& cgroups) {
  if (!cgroups.cpuacct.v2) {
    return os::read_control_number(cgroups.cpuacct.file("cpuacct.usage")).value();
  }
  const auto stat = read_file(cgroups.cpuacct.file("cpu.stat"));
  REQUIRE(stat);
  return os::keyed_value(*stat, "usage_usec").value() * 1000;
}

void pause(Case& e, const Container& container) {
  const auto reply = ask<task_api::PauseRequest>(e, "Pause", container);
  INFO(reply.message);
  REQUIRE(reply.code == kOk);
  CHECK(task_status(e, container) == containerd::v1::types::PAUSED);
}

// Counts up in its output, some hundred times a second.
Container counter(Case& e, const Pod& pod) {
  const Container container =
      e.shell(pod, "echo up; i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done");
  e.await_output(container, "up\n1\n2\n");
  return container;
}

bool goes_on(Case& e, const Container& container) {
  const std::size_t before = e.log(container).out.size();
  return wait_until([&] { return e.log(container).out.size() > before + 20; }, kPatience);
}

}  // namespace

TEST_CASE("limits: a container sees the memory, CPU and process limits that it was given",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config =
        limited(e,
                kMemoryLimit + ";" + either("cpu/cpu.cfs_quota_us", "cpu.max") + ";" +
                    either("cpu/cpu.shares", "cpu.weight"),
                64 * kMiB);
    config.mutable_linux()->mutable_resources()->set_cpu_quota(50'000);
    config.mutable_linux()->mutable_resources()->set_cpu_period(100'000);
    config.mutable_linux()->mutable_resources()->set_cpu_shares(512);
    const std::vector<std::string> lines = lines_of(e.run(pod, config).log.out);
    REQUIRE(lines.size() == 3);
    CHECK(lines[0] == "67108864");
    CHECK((lines[1] == "50000" || lines[1] == "50000 100000"));
    CHECK((lines[2] == "512" || lines[2] == "20"));
  });
}

TEST_CASE("limits: an oom_score_adj is applied, or clamped where the machine forbids it",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = limited(e, "cat /proc/self/oom_score_adj", 64 * kMiB);
    config.mutable_linux()->mutable_resources()->set_oom_score_adj(500);
    CHECK(trimmed(e.run(pod, config).log.out) == "500");
    e.only_ours("oom_score_adj clamped to what the machine allows");
    cri::ContainerConfig less = limited(e, "cat /proc/self/oom_score_adj", 64 * kMiB);
    less.mutable_linux()->mutable_resources()->set_oom_score_adj(-900);
    const auto lowest = os::lowest_oom_score_adj();
    REQUIRE(lowest);
    // The lab has containerd raise it to its own (restrict_oom_score_adj).
    const int containerds =
        std::stoi(read_text(fmt::format("/proc/{}/oom_score_adj", e.lab().containerd_pid())));
    CHECK(trimmed(e.run(pod, less).log.out) ==
          std::to_string(std::max({-900, *lowest, containerds})));
  });
}

TEST_CASE("T3: oom: a container that the OOM killer ended says OOMKilled and 137", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Finished end = e.run(pod, limited(e, "exec " + kHog, 32 * kMiB));
    // As it was when CRI first said EXITED.
    CHECK(end.status.exit_code() == 137);
    CHECK(end.status.reason() == "OOMKilled");
    // An end like any other is not taken for one.
    const Finished other = e.run(pod, limited(e, "exit 137", 32 * kMiB));
    CHECK(other.status.exit_code() == 137);
    CHECK(other.status.reason() == "Error");
  });
}

TEST_CASE("oom: a killed child of a container that lives on is told, also over a restart",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container =
        e.start(pod, limited(e, kHog + "; echo child $?; exec sleep 3600", 32 * kMiB));
    e.await_output(container, "child 137\n");
    CHECK(wait_until([&] { return e.status(container).reason() == "OOMKilled"; }, kPatience));
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
    if (!e.ours()) return;
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    REQUIRE(e.cri().stop_container(container.id, 0));
    CHECK(e.finish(container).status.reason() == "OOMKilled");
  });
}

TEST_CASE("T4: stats: ContainerStats agree with the kernel's own numbers", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.start(
        pod,
        limited(e, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; exec sleep 3607",
                64 * kMiB));
    e.await_output(container, "up\n");
    REQUIRE(wait_until([] { return processes_with("sleep 3607").size() == 1; }, kPatience));
    const os::CgroupControllers cgroups = cgroups_of("sleep 3607");
    const bool v2 = cgroups.memory.v2;
    // The kernel may take charged pages back at any time: compared is what stood still meanwhile.
    const auto usage = [&] {
      return os::read_control_number(
          cgroups.memory.file(v2 ? "memory.current" : "memory.usage_in_bytes"));
    };
    std::uint64_t before = 0;
    std::uint64_t after = 0;
    std::optional<cri::ContainerStats> stats;
    const bool stood_still = wait_until(
        [&] {
          const auto usage_before = usage();
          before = kernel_cpu_time(cgroups);
          auto answer = e.cri().container_stats(container.id);
          after = kernel_cpu_time(cgroups);
          REQUIRE(answer);
          stats = std::move(*answer);
          return usage_before && usage() == usage_before;
        },
        kPatience);
    REQUIRE(stood_still);
    CHECK(stats->memory().usage_bytes().value() == usage());
    CHECK(stats->cpu().usage_core_nano_seconds().value() > 0);
    CHECK(stats->cpu().usage_core_nano_seconds().value() >= before);
    CHECK(stats->cpu().usage_core_nano_seconds().value() <= after);
    const auto text = read_file(cgroups.memory.file("memory.stat"));
    REQUIRE(text);
    CHECK(stats->memory().rss_bytes().value() == os::keyed_value(*text, v2 ? "anon" : "total_rss"));
    CHECK(stats->memory().page_faults().value() ==
          os::keyed_value(*text, v2 ? "pgfault" : "total_pgfault"));
    CHECK(stats->memory().available_bytes().value() ==
          64 * kMiB - stats->memory().working_set_bytes().value());
  });
}

TEST_CASE("stats: a pod's by CRI, and by Controller.Metrics", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    const std::string parent = e.lab().cgroup_parent() + "/pod-stats";
    config.mutable_linux()->set_cgroup_parent(parent);
    const Pod pod = e.run_pod(config);
    const Container container = e.sleeper(pod);
    const auto stats = e.cri().pod_stats(pod.id);
    INFO((stats ? std::string() : stats.error().message));
    REQUIRE(stats);
    CHECK(stats->linux().cpu().usage_core_nano_seconds().value() > 0);
    CHECK(stats->linux().memory().usage_bytes().value() > 0);
    REQUIRE(stats->linux().containers_size() == 1);
    CHECK(stats->linux().containers(0).attributes().id() == container.id);
    e.only_ours("Controller.Metrics");
    ControllerClient controller(e.lab().listen());
    const auto answer = controller.metrics(pod.id);
    INFO(answer.message);
    REQUIRE(answer.code == kOk);
    CHECK(answer.response.metrics().id() == pod.id);
    const google::protobuf::Any& data = answer.response.metrics().data();
    if (data.type_url() == "io.containerd.cgroups.v1.Metrics") {
      io::containerd::cgroups::v1::Metrics metrics;
      REQUIRE(metrics.ParseFromString(data.value()));
      CHECK(metrics.memory().usage().usage() > 0);
    } else {
      CHECK(data.type_url() == "io.containerd.cgroups.v2.Metrics");
      io::containerd::cgroups::v2::Metrics metrics;
      REQUIRE(metrics.ParseFromString(data.value()));
      CHECK(metrics.memory().usage() > 0);
    }
    CHECK(controller.metrics("nobody").code != kOk);
  });
}

TEST_CASE("update: the limits of a running container, up and down, seen from inside",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.start(pod, limited(e, "echo up; exec sleep 3600", 64 * kMiB));
    e.await_output(container, "up\n");
    for (const std::int64_t memory : {128 * kMiB, 48 * kMiB}) {
      cri::LinuxContainerResources limits;
      limits.set_memory_limit_in_bytes(memory);
      limits.set_memory_swap_limit_in_bytes(memory);
      limits.set_cpu_quota(memory / kMiB * 1000);
      limits.set_cpu_period(100'000);
      limits.set_cpu_shares(1024);
      const Result<> updated = e.cri().update_resources(container.id, limits);
      INFO((updated ? std::string() : updated.error().message));
      REQUIRE(updated);
      CHECK(inside(e, container, kMemoryLimit) == std::to_string(memory));
      const std::string quota = inside(e, container, either("cpu/cpu.cfs_quota_us", "cpu.max"));
      CHECK_THAT(quota, ContainsSubstring(std::to_string(memory / kMiB * 1000)));
    }
    // Less than is in use is refused in words, and changes nothing.
    cri::LinuxContainerResources none;
    none.set_memory_limit_in_bytes(4096);
    none.set_memory_swap_limit_in_bytes(4096);
    const Result<> refused = e.cri().update_resources(container.id, none);
    if (!refused && e.ours()) {
      CHECK_THAT(refused.error().message, ContainsSubstring("update container"));
      CHECK(inside(e, container, kMemoryLimit) == std::to_string(48 * kMiB));
    }
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("pause: a container stops, refuses execs, outlives a restart, and goes on",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("Task.Pause by the test's own client");
    const Pod pod = e.run_pod();
    const Container container = counter(e, pod);
    pause(e, container);
    const os::CgroupControllers cgroups = cgroups_of("while :; do i=$((i+1))");
    const std::uint64_t frozen_at = kernel_cpu_time(cgroups);
    const auto refused = e.cri().exec_sync(container.id, {"true"}, 5);
    REQUIRE_FALSE(refused);
    CHECK_THAT(refused.error().message, ContainsSubstring("is paused"));
    CHECK(ask<task_api::PauseRequest>(e, "Pause", container).code == kFailedPrecondition);
    CHECK(ask<task_api::StatsRequest>(e, "Stats", container).code == kOk);

    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK(task_status(e, container) == containerd::v1::types::PAUSED);
    CHECK(kernel_cpu_time(cgroups) == frozen_at);
    REQUIRE(ask<task_api::ResumeRequest>(e, "Resume", container).code == kOk);
    CHECK(task_status(e, container) == containerd::v1::types::RUNNING);
    CHECK(goes_on(e, container));
    CHECK(ask<task_api::ResumeRequest>(e, "Resume", container).code == kFailedPrecondition);
  });
}

TEST_CASE("pause: a paused container is stopped and removed like any other", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("Task.Pause by the test's own client");
    const Pod pod = e.run_pod();
    const Container stopped = counter(e, pod);
    pause(e, stopped);
    const auto began = std::chrono::steady_clock::now();
    REQUIRE(e.cri().stop_container(stopped.id, 1));
    CHECK(std::chrono::steady_clock::now() - began < kPatience / 2);
    CHECK(e.finish(stopped).status.exit_code() == 137);
    // Its memory is given back: the cgroup is gone with the container.
    REQUIRE(e.cri().remove_container(stopped.id));

    const Container with_pod = counter(e, pod);
    pause(e, with_pod);
    e.stop(pod);
    e.remove(pod);
    CHECK(processes_with("while :; do i=$((i+1))").empty());
  });
}

TEST_CASE("checkpoint: an image is written and the container runs on, or criu's words say why not",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("Task.Checkpoint by the test's own client");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    TtrpcProbe probe(e.lab().dir() / "task.sock");
    task_api::CheckpointTaskRequest request;
    request.set_id(container.id);
    request.set_path(e.scratch() / "image");
    const TtrpcProbe::Reply reply = probe.call("Checkpoint", request);
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
    CHECK(inside(e, container, "echo alive") == "alive");
    if (!os::find_program("criu")) {
      CHECK(reply.code == kFailedPrecondition);
      CHECK_THAT(reply.message, ContainsSubstring("install criu"));
      SKIP("criu is not installed here; the refusal was checked");
    }
    if (reply.code != kOk) {
      // The reason is criu's own and not merely the runtime's.
      CHECK_THAT(reply.message, ContainsSubstring("criu"));
      SKIP("this kernel refuses: " << reply.message);
    }
    CHECK(std::filesystem::exists(e.scratch() / "image" / "inventory.img"));
  });
}

TEST_CASE("P6: a cgroup parent of ours that pods share goes with the last of them",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("cgroup parents that it makes");
    cri::PodSandboxConfig config = e.host_network_config();
    const std::string parent = e.lab().cgroup_parent() + "/shared/deep";
    config.mutable_linux()->set_cgroup_parent(parent);
    const Pod maker = e.run_pod(config);
    cri::PodSandboxConfig next = e.host_network_config();
    next.mutable_linux()->set_cgroup_parent(parent);
    const Pod second = e.run_pod(next);
    e.sleeper(second);
    const auto is_there = [&] {
      const auto dirs = os::cgroups_at(parent);
      return dirs && !dirs->empty();
    };
    e.stop(maker);
    e.remove(maker);
    CHECK(is_there());
    // Another daemon knows it, too.
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    e.stop(second);
    e.remove(second);
    CHECK_FALSE(is_there());
  });
}

TEST_CASE("D8 U3: a container that somebody froze is stopped all the same", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod(e.host_network_config());
    const Container container = e.start(pod, e.container_config({"sleep", "3608"}));
    const os::ControllerDir freezer = cgroups_of("sleep 3608").freezer;
    if (!freezer || freezer.v2) SKIP("cgroup v2: SIGKILL acts on what is frozen");
    // One below it, as a container with a cgroup of its own may make.
    const std::string below = freezer.file("below");
    REQUIRE(std::filesystem::create_directory(below));
    const pid_t pid = *processes_with("sleep 3608").begin();
    REQUIRE(os::write_control(below + "/cgroup.procs", std::to_string(pid)));
    REQUIRE(os::write_control(below + "/freezer.state", "FROZEN"));
    REQUIRE(os::write_control(freezer.file("freezer.state"), "FROZEN"));
    const auto begun = std::chrono::steady_clock::now();
    REQUIRE(e.cri().stop_container(container.id, 1));
    CHECK(std::chrono::steady_clock::now() - begun < std::chrono::seconds(5));
    CHECK(e.status(container).exit_code() == 137);
  });
}

}  // namespace kuasar::test
