#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/files.h"
#include "os/cgroup.h"
#include "os/direct_spawner.h"
#include "os/fifo.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "os/pidfd.h"
#include "support/io_fixture.h"

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;

/// A temporary directory on a tmpfs of its own, unmounted and removed at the end.
struct Scratch {
  fs::path dir;
  Scratch() {
    char name[] = "/tmp/kuasar-os-XXXXXX";
    dir = ::mkdtemp(name);
    REQUIRE(mount_tmpfs(dir, "kuasar-test", 0700, 1 << 20, false));
  }
  ~Scratch() {
    (void)unmount_all(dir);
    fs::remove(dir);
  }
};

TEST_CASE("namespaces: a pod's are pinned without a process, named and set up", "[root]") {
  const Scratch scratch;
  PodNamespacePlan plan;
  plan.ipc_pin = scratch.dir / "ipc";
  plan.uts_pin = scratch.dir / "uts";
  plan.hostname = "pod-name";
  plan.sysctls = {{"/proc/sys/kernel/shm_rmid_forced", "1"}};
  REQUIRE(make_pod_namespaces(plan));
  CHECK(is_namespace_pin(plan.ipc_pin));
  CHECK(is_namespace_pin(plan.uts_pin));
  char host[256];
  REQUIRE(::gethostname(host, sizeof host) == 0);
  CHECK(std::string(host) != "pod-name");
  CHECK(read_file("/proc/sys/kernel/shm_rmid_forced").value() == "0\n");

  std::string inside;
  const pid_t child = ::fork();
  if (child == 0) {
    const UniqueFd uts(::open(plan.uts_pin.c_str(), O_RDONLY));
    const UniqueFd ipc(::open(plan.ipc_pin.c_str(), O_RDONLY));
    char name[256] = {};
    const bool joined = ::setns(uts.get(), CLONE_NEWUTS) == 0 &&
                        ::setns(ipc.get(), CLONE_NEWIPC) == 0 &&
                        ::gethostname(name, sizeof name) == 0;
    const Result<std::string> forced = read_file("/proc/sys/kernel/shm_rmid_forced");
    ::_exit(joined && std::string(name) == "pod-name" && forced && *forced == "1\n" ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);

  REQUIRE(remove_pin(plan.ipc_pin));
  REQUIRE(remove_pin(plan.uts_pin));
  REQUIRE(remove_pin(plan.uts_pin));
  CHECK_FALSE(fs::exists(plan.ipc_pin));
}

TEST_CASE("namespaces: a failure leaves no pin", "[root]") {
  const Scratch scratch;
  PodNamespacePlan plan;
  plan.ipc_pin = scratch.dir / "ipc";
  plan.uts_pin = scratch.dir / "uts";
  plan.sysctls = {{"/proc/sys/kernel/no_such_setting", "1"}};
  const Result<> made = make_pod_namespaces(plan);
  REQUIRE_FALSE(made);
  CHECK(made.error().message.find("no_such_setting") != std::string::npos);
  CHECK_FALSE(fs::exists(plan.ipc_pin));
  plan.sysctls.clear();
  plan.uts_pin = scratch.dir / "none" / "uts";
  CHECK_FALSE(make_pod_namespaces(plan));
  CHECK_FALSE(fs::exists(plan.ipc_pin));
  CHECK_FALSE(is_namespace_pin(scratch.dir));
}

TEST_CASE("mounts: overlay, bind and a failure that leaves nothing", "[root]") {
  const Scratch scratch;
  for (const char* name : {"lower", "upper", "work", "target"}) {
    fs::create_directory(scratch.dir / name);
  }
  REQUIRE(write_file(scratch.dir / "lower" / "file", "from below"));
  const std::string target = scratch.dir / "target";
  const MountSpec overlay{"overlay",
                          "overlay",
                          {"lowerdir=" + (scratch.dir / "lower").native(),
                           "upperdir=" + (scratch.dir / "upper").native(),
                           "workdir=" + (scratch.dir / "work").native()}};
  REQUIRE(mount_all({overlay}, target));
  CHECK(read_file(target + "/file").value() == "from below");
  CHECK(is_mountpoint(target));
  REQUIRE(unmount_all(target));
  CHECK_FALSE(is_mountpoint(target));
  REQUIRE(unmount_all(target));

  const MountSpec bind{"bind", scratch.dir / "lower", {"rbind", "ro"}};
  REQUIRE(mount_all({bind}, target));
  CHECK(write_file(target + "/file", "x").error().err == EROFS);
  REQUIRE(unmount_all(target));

  const MountSpec bad{"nosuchfs", "x", {}};
  CHECK_FALSE(mount_all({bind, bad}, target));
  CHECK_FALSE(is_mountpoint(target));
}

TEST_CASE("mounts: an overlay of more layers than one page of options names", "[root]") {
  const Scratch scratch;
  const fs::path layers = scratch.dir / std::string(180, 'd');
  fs::create_directories(layers);
  std::string lower;
  for (int i = 0; i < 30; ++i) {
    const fs::path layer = layers / ("layer-" + std::to_string(i));
    fs::create_directory(layer);
    REQUIRE(write_file(layer / ("file-" + std::to_string(i)), "x"));
    lower += (lower.empty() ? "" : ":") + layer.native();
  }
  REQUIRE(lower.size() > 4096);
  fs::create_directory(scratch.dir / "target");
  const std::string target = scratch.dir / "target";
  REQUIRE(mount_all({{"overlay", "overlay", {"lowerdir=" + lower}}}, target));
  CHECK(fs::exists(target + "/file-0"));
  CHECK(fs::exists(target + "/file-29"));
  REQUIRE(unmount_all(target));
}

TEST_CASE("fifo: opening never waits, what is no FIFO is refused", "[root]") {
  const Scratch scratch;
  const std::string path = scratch.dir / "fifo";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  Result<OutputFifo> fifo = open_output_fifo(path);
  REQUIRE(fifo);
  CHECK((::fcntl(fifo->workload.get(), F_GETFL) & O_NONBLOCK) == 0);
  REQUIRE(::write(fifo->workload.get(), "x", 1) == 1);
  fifo->workload.reset();
  char c = 0;
  CHECK(::read(fifo->reader.get(), &c, 1) == 1);

  REQUIRE(write_file(scratch.dir / "file", "x"));
  CHECK(open_output_fifo(scratch.dir / "file").error().code == Code::kInvalidArgument);
  CHECK(open_output_fifo("binary:///usr/bin/logger").error().code == Code::kInvalidArgument);
  CHECK(open_output_fifo(scratch.dir / "none").error().code == Code::kNotFound);
}

TEST_CASE("cgroup: a whole tree of forking processes is killed", "[root][cgroup]") {
  test::IoFixture io;
  DirectSpawner spawner;
  REQUIRE(DirectSpawner::become_subreaper());
  const auto hierarchies = parse_cgroup_mounts(read_file("/proc/self/mountinfo").value());
  std::vector<std::string> dirs;
  for (const CgroupHierarchy& hierarchy : hierarchies) {
    const bool freezer = std::find(hierarchy.controllers.begin(), hierarchy.controllers.end(),
                                   "freezer") != hierarchy.controllers.end();
    if (freezer || hierarchy.v2) dirs.push_back(hierarchy.mount_point + "/kuasar-kill-test");
  }
  if (dirs.empty()) SKIP("no freezer and no v2 hierarchy is mounted here");
  std::string join;
  for (const std::string& dir : dirs) {
    fs::create_directories(dir + "/below");
    join += "echo $$ > " + dir + "/below/cgroup.procs; ";
  }
  ProcessSpec spec;
  spec.argv = {"sh", "-c",
               join +
                   "for i in 1 2 3 4 5; do (while :; do sleep 0.01; done) & done; "
                   "while :; do sleep 0.01; done"};
  spec.env = {"PATH=/usr/bin:/bin"};
  const Process process = *io.run(spawner.spawn("tree", std::move(spec)));
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (cgroup_pids(dirs).size() < 6 && std::chrono::steady_clock::now() < deadline) {
    io.run(sleep_for(std::chrono::milliseconds(10)));
  }
  REQUIRE(cgroup_pids(dirs).size() >= 6);
  CHECK(own_cgroups_of(process.pid)->size() == dirs.size());
  REQUIRE(kill_cgroup(dirs));
  CHECK(io.run(spawner.wait(process)).code == 137);
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
  CHECK(cgroup_pids(dirs).empty());
  REQUIRE(kill_cgroup(dirs));
  remove_cgroups(dirs);
  for (const std::string& dir : dirs) CHECK_FALSE(fs::exists(dir));
}

TEST_CASE("cgroup: what a process shares with its parent is not its own; it can go elsewhere",
          "[root][cgroup]") {
  test::IoFixture io;
  DirectSpawner spawner;
  const std::vector<std::string> unit = cgroups_below("/", "kuasar-unit-test");
  const std::vector<std::string> pod = cgroups_below("", "kuasar-pod-test");
  REQUIRE_FALSE(unit.empty());
  CHECK(cgroups_below("/kubepods.slice", "x").empty());
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  ProcessSpec spec;
  spec.argv = {"sh", "-c", "read go; sleep 1000 & echo $!; wait"};
  spec.env = {"PATH=/usr/bin:/bin"};
  int go[2];
  REQUIRE(::pipe2(go, O_CLOEXEC) == 0);
  const UniqueFd go_read(go[0]);
  const UniqueFd go_write(go[1]);
  spec.fds = {{go_read.get(), 0}, {in.get(), 1}};
  const Process parent = *io.run(spawner.spawn("parent", std::move(spec)));
  enter_cgroups(parent.pid, unit);
  const auto entered = static_cast<std::size_t>(
      std::count_if(unit.begin(), unit.end(), [](const auto& dir) { return fs::exists(dir); }));
  REQUIRE(entered > 0);
  CHECK(own_cgroups_of(parent.pid)->size() == entered);
  REQUIRE(::write(go_write.get(), "\n", 1) == 1);
  char text[32] = {};
  REQUIRE(::read(out.get(), text, sizeof text - 1) > 0);
  const pid_t child = std::atoi(text);

  CHECK(own_cgroups_of(child)->empty());
  enter_cgroups(child, pod);
  CHECK(own_cgroups_of(child)->size() == entered);
  CHECK(cgroup_pids(pod) == std::vector<pid_t>{child});

  REQUIRE(kill_cgroup(pod));
  CHECK(io.run(spawner.wait(parent)).code == 0);
  remove_empty_cgroups(pod);
  remove_empty_cgroups(unit);
  for (const std::string& dir : unit) CHECK_FALSE(fs::exists(dir));
  for (const std::string& dir : pod) CHECK_FALSE(fs::exists(dir));
}

}  // namespace
}  // namespace kuasar::os
