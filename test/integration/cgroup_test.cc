#include "os/cgroup.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/files.h"
#include "os/cgroup_files.h"
#include "os/cgroup_freezer.h"
#include "os/cgroup_limits.h"
#include "os/cgroup_oom.h"
#include "os/direct_spawner.h"
#include "os/oom_score.h"
#include "os/systemd_unit.h"
#include "support/io_fixture.h"
#include "support/wait.h"

// Real cgroups of this machine, whatever version it has.

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// A cgroup in every hierarchy, and processes in it; removed at the end with all that is in it.
struct CgroupFixture {
  test::IoFixture io;
  DirectSpawner spawner;
  std::vector<std::string> dirs;
  int next = 0;

  CgroupFixture() {
    const auto hierarchies = parse_cgroup_mounts(read_file("/proc/self/mountinfo").value());
    if (hierarchies.empty()) SKIP("no cgroup hierarchy is mounted here");
    for (const CgroupHierarchy& hierarchy : hierarchies) {
      const std::string dir = hierarchy.mount_point + "/kuasar-cgroup-test";
      REQUIRE(make_dir(dir, 0755));
      dirs.push_back(dir);
      // A v1 cpuset is born without CPUs, and takes no process so.
      for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
        const auto parent = read_file(hierarchy.mount_point + file);
        if (!hierarchy.v2 && parent) REQUIRE(write_control(dir + file, *parent));
      }
    }
  }
  ~CgroupFixture() {
    (void)kill_cgroup(dirs);
    test::wait_until([&] { return cgroup_pids(dirs).empty(); }, 5s);
    remove_cgroups(dirs);
  }

  Process run(const std::string& script) {
    std::string join;
    for (const std::string& dir : dirs) join += "echo $$ > " + dir + "/cgroup.procs; ";
    ProcessSpec spec;
    spec.argv = {"sh", "-c", join + script};
    spec.env = {"PATH=/usr/bin:/bin"};
    auto process = io.run(spawner.spawn("member" + std::to_string(next++), std::move(spec)));
    REQUIRE(process);
    REQUIRE(
        test::wait_until([&] { return own_cgroups_of(process->pid)->size() >= dirs.size(); }, 5s));
    return std::move(*process);
  }
  Result<> limit(const CgroupLimits& limits) const {
    const CgroupControllers controllers = find_controllers(dirs);
    TRY(const auto writes, plan_limits(controllers, read_cgroup_now(controllers), limits));
    return apply_limits(writes);
  }
  std::uint64_t cpu_time() const {
    const ControllerDir& place = find_controllers(dirs).cpuacct;
    if (!place.v2) return read_control_number(place.file("cpuacct.usage")).value();
    return keyed_value(read_file(place.file("cpu.stat")).value(), "usage_usec").value();
  }
};

}  // namespace

TEST_CASE_METHOD(CgroupFixture, "cgroup: frozen processes use no CPU, and run on when thawed",
                 "[root][cgroup]") {
  if (!find_controllers(dirs).freezer) SKIP("no freezer here");
  const Process process = run("while :; do :; done");
  CHECK_FALSE(is_frozen(dirs));
  REQUIRE(freeze_cgroup(dirs));
  CHECK(is_frozen(dirs));
  REQUIRE(freeze_cgroup(dirs));
  const std::uint64_t stopped_at = cpu_time();
  io.run(sleep_for(50ms));
  CHECK(cpu_time() == stopped_at);
  REQUIRE(thaw_cgroup(dirs));
  CHECK_FALSE(is_frozen(dirs));
  CHECK(test::wait_until([&] { return cpu_time() > stopped_at; }, 5s));
}

TEST_CASE_METHOD(CgroupFixture, "cgroup: what is frozen can be killed, and is thawed then",
                 "[root][cgroup]") {
  if (!find_controllers(dirs).freezer) SKIP("no freezer here");
  const Process process = run("sleep 1000 & sleep 1000");
  REQUIRE(freeze_cgroup(dirs));
  REQUIRE(kill_cgroup(dirs));
  CHECK(io.run(spawner.wait(process)).code == 137);
  CHECK(test::wait_until([&] { return cgroup_pids(dirs).empty(); }, 5s));
  CHECK_FALSE(is_frozen(dirs));
}

TEST_CASE_METHOD(CgroupFixture,
                 "cgroup: who prepares for a move stays where it is, and so do others",
                 "[root][cgroup]") {
  std::atomic<int> moved = 0;
  const auto stay = [&] {
    // Of v1; nowhere else is it done.
    for (const std::string& dir : dirs) {
      (void)write_control(dir + "/tasks", std::to_string(::gettid()));
    }
    for (int i = 0; i < 20; ++i) {
      const std::string before = read_file("/proc/thread-self/cgroup").value();
      prepare_cgroup_move();
      if (read_file("/proc/thread-self/cgroup").value() != before) ++moved;
    }
  };
  const std::string before = read_file("/proc/self/cgroup").value();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(stay);
  for (std::thread& thread : threads) thread.join();
  CHECK(moved == 0);
  CHECK(read_file("/proc/self/cgroup").value() == before);
}

TEST_CASE_METHOD(CgroupFixture, "cgroup: limits are set, raised and lowered in the kernel",
                 "[root][cgroup]") {
  const CgroupControllers controllers = find_controllers(dirs);
  if (!controllers.memory || !controllers.cpu || !controllers.pids) {
    SKIP("the memory, cpu or pids controller is missing here");
  }
  const ControllerDir& memory = controllers.memory;
  const std::string file = memory.file(memory.v2 ? "memory.max" : "memory.limit_in_bytes");
  CgroupLimits limits;
  for (const std::int64_t mebibytes : {64, 256, 32}) {
    limits.memory = mebibytes << 20;
    limits.memory_swap = *limits.memory;
    limits.cpu_quota = mebibytes * 1000;
    limits.cpu_period = 100'000;
    limits.cpu_shares = 512;
    limits.pids = mebibytes;
    const Result<> set = limit(limits);
    INFO((set ? std::string() : set.error().message));
    REQUIRE(set);
    CHECK(read_control_number(file) == static_cast<std::uint64_t>(*limits.memory));
    CHECK(read_control_number(controllers.pids.file("pids.max")) ==
          static_cast<std::uint64_t>(mebibytes));
    CHECK(read_cgroup_now(controllers).cpu_quota == mebibytes * 1000);
  }
  // All or nothing: the second half is refused by the kernel.
  limits = {};
  limits.cpu_shares = 1024;
  limits.cpuset_cpus = "8000";
  const Result<> refused = limit(limits);
  CHECK_FALSE(refused);
  if (!controllers.cpu.v2) {
    CHECK(read_control_number(controllers.cpu.file("cpu.shares")) == 512U);
  }
}

TEST_CASE_METHOD(CgroupFixture, "cgroup: the watch tells of an OOM kill", "[root][cgroup]") {
  if (!find_controllers(dirs).memory) SKIP("no memory controller here");
  CgroupLimits limits;
  limits.memory = 16 << 20;
  limits.memory_swap = 16 << 20;
  REQUIRE(limit(limits));
  std::vector<std::optional<std::uint64_t>> told;
  auto watch = OomWatch::open(io.executor(), dirs, [&] { told.push_back(oom_kills(dirs)); });
  INFO((watch ? std::string() : watch.error().message));
  REQUIRE(watch);
  CHECK(oom_kills(dirs) == 0);
  const std::string greedy = "exec dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null";
  const Process process = run(greedy);
  CHECK(io.run(spawner.wait(process)).code == 137);
  // v1 wakes before it kills.
  CHECK(io.comes_to([&] { return !told.empty(); }));
  CHECK(told == std::vector<std::optional<std::uint64_t>>{1});
  CHECK(io.run(spawner.wait(run(greedy + " || exit 7"))).code == 137);
  CHECK(io.comes_to([&] { return told.size() == 2; }));
  CHECK(told.back() == 2);
  watch->reset();
  CHECK(io.run(spawner.wait(run(greedy + " && exit 7"))).code == 137);
  io.settle();
  CHECK(told.size() == 2);
}

TEST_CASE("cgroup: a v2 event file wakes the watch's kind of poll", "[root][cgroup]") {
  const auto hierarchies = parse_cgroup_mounts(read_file("/proc/self/mountinfo").value());
  const auto v2 = std::find_if(hierarchies.begin(), hierarchies.end(),
                               [](const CgroupHierarchy& hierarchy) { return hierarchy.v2; });
  if (v2 == hierarchies.end()) SKIP("no cgroup v2 is mounted here");
  // memory.events is not to be had without the controller: cgroup.events, by its name.
  const std::string real = v2->mount_point + "/kuasar-event-test";
  REQUIRE(make_dir(real, 0755));
  char name[] = "/tmp/kuasar-events-XXXXXX";
  const std::string fake = ::mkdtemp(name);
  REQUIRE(write_file(fake + "/cgroup.controllers", ""));
  REQUIRE(write_file(fake + "/memory.current", "0"));
  fs::create_symlink(real + "/cgroup.events", fake + "/memory.events");
  test::IoFixture io;
  DirectSpawner spawner;
  {
    int told = 0;
    auto watch = OomWatch::open(io.executor(), {fake}, [&] { ++told; });
    REQUIRE(watch);
    ProcessSpec spec;
    spec.argv = {"sh", "-c", "echo $$ > " + real + "/cgroup.procs"};
    spec.env = {"PATH=/usr/bin:/bin"};
    const auto process = io.run(spawner.spawn("joins", std::move(spec)));
    REQUIRE(process);
    CHECK(io.run(spawner.wait(*process)).code == 0);
    CHECK(io.comes_to([&] { return told > 0; }));
  }
  CHECK(test::wait_until([&] { return ::rmdir(real.c_str()) == 0; }, 5s));
  fs::remove_all(fake);
}

TEST_CASE("cgroup: the lowest oom_score_adj is found out and nothing is changed", "[root]") {
  const auto before = read_control("/proc/self/oom_score_adj");
  const auto lowest = lowest_oom_score_adj();
  REQUIRE(lowest);
  CHECK(read_control("/proc/self/oom_score_adj").value() == before.value());
  const bool allowed = write_control("/proc/self/oom_score_adj", "-1000").has_value();
  REQUIRE(write_control("/proc/self/oom_score_adj", *before));
  CHECK((*lowest == -1000) == allowed);
}

TEST_CASE("systemd: an unknown unit is refused in words", "[root]") {
  const Result<> refused =
      set_unit_properties("kuasar-no-such-unit.scope", {{"TasksMax", std::uint64_t{5}}});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("kuasar-no-such-unit.scope") != std::string::npos);
}

TEST_CASE("cgroup: a container's own is made with what limits and processes need, and taken away",
          "[root][cgroup]") {
  CgroupFixture f;
  const std::string path = "/kuasar-cgroup-test/pod/c1";
  const Result<std::vector<std::string>> made = make_container_cgroups(path);
  REQUIRE(made);
  CHECK(made->size() == f.dirs.size());
  CHECK(container_cgroups(path) == *made);
  for (const std::string& dir : *made) {
    INFO(dir);
    CHECK(fs::is_directory(dir));
    if (fs::exists(dir + "/cpuset.cpus") && fs::exists(dir + "/cpuset.cpu_exclusive")) {
      CHECK(read_control(dir + "/cpuset.cpus").value_or("") != "");
      CHECK(read_control(dir + "/cpuset.mems").value_or("") != "");
    }
  }
  // Every one of them takes a process, the cpuset too.
  // It has not been in their parents before: those of v2 that pass controllers on take none.
  ProcessSpec spec;
  spec.argv = {"sleep", "3600"};
  spec.env = {"PATH=/usr/bin:/bin"};
  Result<Process> process = f.io.run(f.spawner.spawn("sleeper", std::move(spec)));
  REQUIRE(process);
  enter_cgroups(process->pid, *made);
  for (const std::string& dir : *made) {
    INFO(dir);
    CHECK(cgroup_pids({dir}) == std::vector<pid_t>{process->pid});
  }
  REQUIRE(kill_cgroup(*made));
  CHECK(test::wait_until([&] { return cgroup_pids(*made).empty(); }, 5s));
  remove_cgroups(*made);
  for (const std::string& dir : *made) CHECK_FALSE(fs::exists(dir));
  CHECK_FALSE(make_container_cgroups("/kuasar-cgroup-test/../../x"));
}

}  // namespace kuasar::os
