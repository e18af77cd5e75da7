#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>
#include <thread>

#include "base/files.h"
#include "os/direct_spawner.h"
#include "os/idmap.h"
#include "os/namespaces.h"
#include "os/pidfd.h"
#include "sandbox/pod_helper.h"
#include "support/io_fixture.h"

// A pod's user namespace: kuasar-pid-init in its roles, and root file systems mapped into it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr sandbox::PodUserNamespace kMaps{{1000000, 65536}, {2000000, 65536}};

std::string pid_init_program() {
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / "kuasar-pid-init";
}

struct Fixture {
  IoFixture io;
  BlockingPool pool{1};
  os::DirectSpawner spawner;
  fs::path dir;

  Fixture() {
    if (::geteuid() != 0) SKIP("user namespaces of others need root");
    REQUIRE(os::DirectSpawner::become_subreaper());
    char name[] = "/tmp/kuasar-userns-XXXXXX";
    dir = ::mkdtemp(name);
    REQUIRE(os::mount_tmpfs(dir, "kuasar-test", 0711, 4 << 20, false));
  }
  ~Fixture() {
    for (const char* kind : {"pid", "user", "ipc", "uts", "net"}) (void)os::remove_pin(pin(kind));
    (void)os::unmount_all(dir);
    fs::remove(dir);
  }
  std::string pin(const std::string& kind) const { return dir / kind; }
  sandbox::PodHelper helper() { return {spawner, pool, pid_init_program()}; }
  sandbox::UserNamespacePlan plan(const std::string& netns) const {
    return {"pod/user-namespace", kMaps, netns, pin("user"), pin("ipc"), pin("uts")};
  }
  // A network namespace in a user namespace that nothing else is left of, as CRI makes it (T25).
  void make_netns(const std::string& map) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) ::_exit(1);
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, WUNTRACED) == child);
    REQUIRE(WIFSTOPPED(status));
    const std::string proc = "/proc/" + std::to_string(child);
    REQUIRE(write_file(proc + "/uid_map", map));
    REQUIRE(write_file(proc + "/gid_map", "0 2000000 65536\n"));
    REQUIRE(os::pin_process_namespace(child, "net", pin("net")));
    ::kill(child, SIGCONT);
    REQUIRE(::waitpid(child, &status, 0) == child);
  }
};

std::string owner_of(const std::string& path) {
  const Result<UniqueFd> owner = os::open_owning_user_namespace(path);
  REQUIRE(owner);
  struct stat st {};
  REQUIRE(::fstat(owner->get(), &st) == 0);
  return std::to_string(st.st_ino);
}

std::string inode_of(const std::string& path) {
  struct stat st {};
  REQUIRE(::stat(path.c_str(), &st) == 0);
  return std::to_string(st.st_ino);
}

}  // namespace

TEST_CASE("T25 userns: the pod's is the owner of CRI's network namespace, and owns ipc and uts",
          "[root]") {
  Fixture f;
  f.make_netns("0 1000000 65536\n");
  const Result<> made = f.io.run(sandbox::make_user_namespaces(f.helper(), f.plan(f.pin("net"))));
  INFO((made ? std::string() : made.error().message));
  REQUIRE(made);
  const std::string user = inode_of(f.pin("user"));
  for (const char* kind : {"net", "ipc", "uts"}) CHECK(owner_of(f.pin(kind)) == user);
  // Set up from outside, by a thread of this process.
  os::PodNamespacePlan set_up;
  set_up.made = true;
  set_up.ipc_pin = f.pin("ipc");
  set_up.uts_pin = f.pin("uts");
  set_up.hostname = "mapped-pod";
  set_up.netns_path = f.pin("net");
  set_up.sysctls = {{"/proc/sys/kernel/shm_rmid_forced", "1"}};
  set_up.net_sysctls = {{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"}};
  const Result<> done = os::make_pod_namespaces(set_up);
  INFO((done ? std::string() : done.error().message));
  CHECK(done);
}

TEST_CASE("T25 userns: other maps than the pod's, and the host's user namespace, are refused",
          "[root]") {
  Fixture f;
  f.make_netns("0 3000000 65536\n");
  const Result<> made = f.io.run(sandbox::make_user_namespaces(f.helper(), f.plan(f.pin("net"))));
  REQUIRE_FALSE(made);
  CHECK(made.error().message.find("0:3000000:65536") != std::string::npos);
  CHECK_FALSE(fs::exists(f.pin("user")));
  const Result<> of_host =
      f.io.run(sandbox::make_user_namespaces(f.helper(), f.plan("/proc/self/ns/net")));
  REQUIRE_FALSE(of_host);
  CHECK(of_host.error().message.find("the host's user namespace") != std::string::npos);
}

TEST_CASE("T25 userns: one is made from the maps, and an init whose PID namespace it owns",
          "[root]") {
  Fixture f;
  sandbox::UserNamespacePlan plan = f.plan("");
  plan.uts_pin.clear();
  const Result<> made = f.io.run(sandbox::make_user_namespaces(f.helper(), plan));
  INFO((made ? std::string() : made.error().message));
  REQUIRE(made);
  CHECK(owner_of(f.pin("ipc")) == inode_of(f.pin("user")));
  CHECK_FALSE(fs::exists(f.pin("uts")));

  const sandbox::PidInitPlan init_plan{"pod/pid-init", {f.pin("ipc")}, f.pin("user")};
  Result<os::Process> init = f.io.run(sandbox::start_pid_init(f.helper(), init_plan));
  INFO((init ? std::string() : init.error().message));
  REQUIRE(init);
  const std::string proc = "/proc/" + std::to_string(init->pid);
  CHECK(inode_of(proc + "/ns/user") == inode_of(f.pin("user")));
  CHECK(inode_of(proc + "/ns/ipc") == inode_of(f.pin("ipc")));
  REQUIRE(os::pin_process_namespace(init->pid, "pid", f.pin("pid")));
  CHECK(owner_of(f.pin("pid")) == inode_of(f.pin("user")));
  CHECK(fs::is_empty(fs::path(proc) / "root" / ""));
  const std::string status = read_file(proc + "/status").value();
  CHECK(status.find("Uid:\t65534\t65534\t65534\t65534") != std::string::npos);
  CHECK(status.find("NSpid:\t" + std::to_string(init->pid) + "\t1\n") != std::string::npos);
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    CHECK(status.find(std::string(set) + ":\t0000000000000000") != std::string::npos);
  }
  REQUIRE(os::pidfd_signal(init->pidfd.get(), SIGKILL));
  CHECK(f.io.run(f.spawner.wait(*init)).code == 137);
  f.spawner.acknowledge(*init);
}

TEST_CASE("T25 mounts: a root file system's owners are mapped, the files are not touched",
          "[root]") {
  Fixture f;
  sandbox::UserNamespacePlan plan = f.plan("");
  REQUIRE(f.io.run(sandbox::make_user_namespaces(f.helper(), plan)));
  for (const char* name : {"a", "b", "upper", "work", "target"}) fs::create_directory(f.dir / name);
  REQUIRE(write_file(f.dir / "a" / "of-root", "x"));
  REQUIRE(write_file(f.dir / "b" / "of-seven", "x"));
  REQUIRE(::chown((f.dir / "b" / "of-seven").c_str(), 7, 8) == 0);
  const std::string target = f.dir / "target";
  const std::string scratch = f.dir / "lower";
  const os::IdMap map{f.pin("user"), "0:1000000:65536", "0:2000000:65536"};
  const std::vector<std::string> maps = {"uidmap=" + map.uids, "gidmap=" + map.gids};
  os::MountSpec overlay{"overlay", "overlay", maps};
  overlay.options.push_back("lowerdir=" + (f.dir / "a").native() + ":" + (f.dir / "b").native());
  overlay.options.push_back("upperdir=" + (f.dir / "upper").native());
  overlay.options.push_back("workdir=" + (f.dir / "work").native());
  os::MountSpec bind{"bind", f.dir / "b", maps};
  bind.options.push_back("ro");
  const auto owner = [&](const std::string& name) {
    struct stat st {};
    REQUIRE(::stat((target + "/" + name).c_str(), &st) == 0);
    return std::pair(st.st_uid, st.st_gid);
  };
  const Result<> mounted = os::mount_all({overlay}, target, map, scratch);
  INFO((mounted ? std::string() : mounted.error().message));
  REQUIRE(mounted);
  CHECK(owner("of-root") == std::pair(1000000U, 2000000U));
  CHECK(owner("of-seven") == std::pair(1000007U, 2000008U));
  CHECK_FALSE(fs::exists(scratch));
  REQUIRE(os::unmount_all(target));

  REQUIRE(os::mount_all({bind}, target, map, scratch));
  CHECK(owner("of-seven") == std::pair(1000007U, 2000008U));
  CHECK(write_file(target + "/new", "x").error().err == EROFS);
  REQUIRE(os::unmount_all(target));

  // What fails leaves neither mounts nor directories; nor does a daemon that died half way.
  overlay.options.back() = "workdir=/no/such/dir";
  CHECK_FALSE(os::mount_all({overlay}, target, map, scratch));
  CHECK_FALSE(fs::exists(scratch));
  CHECK_FALSE(os::is_mountpoint(target));
  fs::create_directories(scratch + "/0");
  REQUIRE(os::bind_mount(f.dir / "a", scratch + "/0"));
  CHECK(os::remove_idmap_scratch(scratch));
  CHECK_FALSE(fs::exists(scratch));
  CHECK(os::remove_idmap_scratch(scratch));
  CHECK(fs::exists(f.dir / "a" / "of-root"));
}

}  // namespace kuasar::test
