#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "e2e/table.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"
#include "os/process_usage.h"
#include "support/process.h"
#include "support/wait.h"

// What a tenant who is root in a container must not be able to do to the node (docs/SECURITY.md),
// and what its CPU limit must not do to our promises.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

std::uint64_t used_bytes(const fs::path& path) {
  struct statvfs st {};
  REQUIRE(::statvfs(path.c_str(), &st) == 0);
  return (st.f_blocks - st.f_bfree) * st.f_frsize;
}

/// A pod whose limit leaves no CPU time for anybody: one of its containers uses up all of it.
class ThrottledPod {
 public:
  explicit ThrottledPod(Case& e) {
    cri::PodSandboxConfig config = e.host_network_config();
    config.mutable_linux()->set_cgroup_parent(e.lab().cgroup_parent() + "/throttled");
    pod_ = e.run_pod(config);
    e.start(pod_, e.container_config({"sh", "-c", ": busy-loop; while :; do :; done"}));
    REQUIRE(wait_until([] { return processes_with(": busy-loop").size() == 1; }, 10s));
    const auto dirs = os::own_cgroups_of(*processes_with(": busy-loop").begin());
    REQUIRE(dirs);
    const os::ControllerDir cpu = os::find_controllers(*dirs).cpu;
    dir_ = fs::path(cpu.dir).parent_path();
    v2_ = cpu.v2;
    limit(2000);
  }
  ThrottledPod(const ThrottledPod&) = delete;
  ThrottledPod& operator=(const ThrottledPod&) = delete;
  ~ThrottledPod() { limit(-1); }

  const Pod& pod() const { return pod_; }

 private:
  // Microseconds in 100 ms.
  void limit(int quota) const {
    if (v2_) {
      (void)os::write_control(dir_ / "cpu.max",
                              (quota < 0 ? "max" : std::to_string(quota)) + " 100000");
    } else {
      (void)os::write_control(dir_ / "cpu.cfs_quota_us", std::to_string(quota));
    }
  }

  Pod pod_;
  fs::path dir_;
  bool v2_ = false;
};

}  // namespace

TEST_CASE("D2: a container cannot fill the state directory", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("files of a pod on a file system of their own");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const std::uint64_t before = used_bytes(e.lab().dir());
    for (const char* file : {"resolv.conf", "hosts", "hostname"}) {
      const auto answer = e.cri().exec_sync(
          container.id,
          {"sh", "-c", fmt::format("dd if=/dev/zero of=/etc/{} bs=64k count=800 2>&1", file)}, 20);
      REQUIRE(answer);
      CHECK(answer->exit_code() != 0);
      CHECK_THAT(answer->stdout(), Catch::Matchers::ContainsSubstring("No space left on device"));
    }
    CHECK(used_bytes(e.lab().dir()) < before + (256U << 10));
    // Nobody else is refused.
    const Pod witness = e.run_pod();
    CHECK(e.output_of(witness, "cat /etc/hostname") != "");
  });
}

TEST_CASE("D17: nothing in a pod's files is set-user-id, executable or a device", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("mount options that containerd's own pods do not have");
    const Pod pod = e.run_pod();
    const std::string mounts =
        e.output_of(pod, "grep -E ' /etc/(hosts|hostname|resolv.conf) ' /proc/self/mountinfo");
    CHECK(lines_of(mounts).size() == 3);
    for (const std::string& line : lines_of(mounts)) {
      CHECK_THAT(line, Catch::Matchers::ContainsSubstring("nosuid,nodev,noexec"));
    }
    const Container container = e.sleeper(pod);
    const auto answer = e.cri().exec_sync(
        container.id,
        {"sh", "-c", "echo '#!/bin/sh' >/etc/hosts; chmod 4755 /etc/hosts; /etc/hosts"}, 20);
    REQUIRE(answer);
    CHECK(answer->exit_code() == 126);
  });
}

TEST_CASE("D9: users of the host do not reach a pod's /dev/shm", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("the directory of a pod");
    const Pod pod = e.run_pod();
    CHECK(e.output_of(pod, "echo secret >/dev/shm/note; cat /dev/shm/note") == "secret");
    const fs::path dir = e.lab().dir() / "sandboxes" / pod.id;
    struct stat st {};
    REQUIRE(::stat(dir.c_str(), &st) == 0);
    CHECK((st.st_mode & 07777) == 0700);
    const auto read = run_program({"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                   "cat", (dir / "shm" / "note").native()});
    REQUIRE(read);
    CHECK(read->code != 0);
    CHECK_THAT(read->output, Catch::Matchers::ContainsSubstring("Permission denied"));
  });
}

TEST_CASE("D3: kill -9 at any moment of the create of a CPU-throttled container loses nothing",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a create that outlives its daemon");
    const ThrottledPod throttled(e);
    for (int round = 0; round < 6; ++round) {
      const std::chrono::milliseconds delay(20 + 130 * round);
      CAPTURE(delay.count());
      const Container container = e.create(throttled.pod(), e.container_config({"sleep", "3600"}));
      auto starting =
          std::async(std::launch::async, [&] { return e.cri().start_container(container.id); });
      std::this_thread::sleep_for(delay);
      e.lab().kill_sandboxer();
      e.lab().start_sandboxer();
      const Result<> started = starting.get();
      INFO((started ? "" : started.error().message));
      CHECK(started);
      CHECK(e.cri().stop_container(container.id, 0));
      CHECK(e.cri().remove_container(container.id));
    }
  });
}

TEST_CASE("D3: a create that takes longer than runtime_timeout_secs leaves nothing", "[e2e]") {
  run_case_with("runtime_timeout_secs = 1\n", [](Case& e) {
    const ThrottledPod throttled(e);
    // One that finds the period fresh is made in time.
    Result<> started;
    for (int i = 0; i < 20 && started; ++i) {
      const Container container = e.create(throttled.pod(), e.container_config({"sleep", "3600"}));
      started = e.cri().start_container(container.id);
      if (started) REQUIRE(e.cri().stop_container(container.id, 0));
    }
    REQUIRE_FALSE(started);
    CHECK_THAT(started.error().message,
               Catch::Matchers::ContainsSubstring("did not end within 1 s and was killed"));
    CHECK(processes_with("runc init").empty());
    // Its zombie, of a PID namespace, is the daemon's to reap, in a round or two.
    CHECK(wait_until(
        [] {
          const std::vector<pid_t> pids = os::all_pids();
          return std::none_of(pids.begin(), pids.end(), [](pid_t pid) {
            return read_text(fmt::format("/proc/{}/comm", pid)).starts_with("runc:[");
          });
        },
        10s));
  });
}

TEST_CASE("D12 U2: SIGTERM does not wait for a slow exec, and all else is served meanwhile",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a daemon that stops");
    const Pod pod = e.run_pod(e.host_network_config());
    const Container slow = e.start(pod, e.container_config({"sleep", "3600"}));
    cri::LinuxContainerResources limits;
    limits.set_cpu_quota(1000);
    limits.set_cpu_period(1'000'000);
    REQUIRE(e.cri().update_resources(slow.id, limits));
    const Pod witness = e.run_pod(e.host_network_config());
    const Container served = e.sleeper(witness);
    auto hanging =
        std::async(std::launch::async, [&] { return e.cri().exec_sync(slow.id, {"true"}, 60); });
    // The OCI runtime is at it.
    REQUIRE(wait_until([&] { return !processes_with("/containers/" + slow.id + "/exec-").empty(); },
                       10s));
    auto stopping = std::async(std::launch::async, [&] {
      const auto begun = Clock::now();
      CHECK(e.lab().stop_sandboxer() == 0);
      return Clock::now() - begun;
    });
    std::this_thread::sleep_for(200ms);
    const auto begun = Clock::now();
    const auto answer = e.cri().exec_sync(served.id, {"echo", "served"}, 20);
    CHECK(Clock::now() - begun < 2s);
    REQUIRE(answer);
    CHECK(answer->stdout() == "served\n");
    CHECK(stopping.get() < 5500ms);
    e.lab().start_sandboxer();
    limits.set_cpu_quota(100'000);
    limits.set_cpu_period(100'000);
    REQUIRE(e.cri().update_resources(slow.id, limits));
    // The next daemon has gone on with it.
    const auto ended = hanging.get();
    INFO((ended ? "" : ended.error().message));
    REQUIRE(ended);
    CHECK(ended->exit_code() == 0);
  });
}

}  // namespace kuasar::test
