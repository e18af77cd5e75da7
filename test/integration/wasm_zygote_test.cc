#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/files.h"
#include "os/oom_score.h"
#include "support/filtered_child.h"
#include "support/wasm_cache_fixture.h"
#include "worker/seccomp.h"

// Zygotes of modules: what they are, what their children are, and that a container comes to life
// without them wherever they are of no use.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_ADMIN.
constexpr const char* kCapabilities = "00000000002400c0";
constexpr const char* kNoCapabilities = "0000000000000000";

wasm::EngineConfig each_engine() {
  const std::string name = GENERATE("wasmedge", "wasmtime");
  wasm::EngineConfig engine = lab_engine();
  if (name == "wasmtime") {
    std::string reason;
    const auto found = find_wasmtime(reason);
    if (!found) SKIP(reason);
    engine = *found;
  }
  engine.aot = true;
  return engine;
}

using Fixture = WasmCacheFixture;

}  // namespace

TEST_CASE("module zygotes: from the third container on, with the rights that its children need",
          "[root][wasm]") {
  Fixture f(each_engine());
  f.warm("/hello.wasm");
  CHECK(f.one({"/hello.wasm"}) == std::pair<std::string, int>("hello from wasm\n", 0));
  REQUIRE(f.zygotes().size() == 1);
  const pid_t zygote = f.zygotes().front();
  CHECK(status_of(zygote, "CapEff") == kCapabilities);
  CHECK(status_of(zygote, "CapPrm") == kCapabilities);
  CHECK(status_of(zygote, "CapBnd") == kNoCapabilities);
  CHECK(status_of(zygote, "CapInh") == kNoCapabilities);
  CHECK(status_of(zygote, "NoNewPrivs") == "1");
  CHECK(status_of(zygote, "Seccomp") == "2");
  CHECK(status_of(zygote, "Threads") == "1");
  CHECK(status_of(zygote, "Uid") == "1000\t1000\t1000\t1000");
  CHECK(status_of(zygote, "Gid") == "1000\t1000\t1000\t1000");
  CHECK(status_of(zygote, "Groups") == "");
  // Its own network has the loopback device, and nothing to send to.
  const std::string proc = fmt::format("/proc/{}/", zygote);
  CHECK(fs::read_symlink(proc + "ns/net") != fs::read_symlink("/proc/self/ns/net"));
  CHECK(fs::read_symlink(proc + "ns/mnt") != fs::read_symlink("/proc/self/ns/mnt"));
  CHECK(read_file(proc + "net/route").value_or("").find("\n\n") == std::string::npos);
  CHECK(fs::is_empty(fs::path(proc) / "root/root"));

  SECTION("a child has none of its rights, and what its pod has") {
    const std::string id = f.next_id();
    f.create(id, {"/hello.wasm"});
    const pid_t child = f.driver->host_pid({id, ""});
    CHECK(f.zygotes().size() == 1);
    for (const char* set : {"CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"}) {
      CHECK(status_of(child, set) == kNoCapabilities);
    }
    CHECK(status_of(child, "NoNewPrivs") == "1");
    CHECK(status_of(child, "Seccomp") == "2");
    CHECK(status_of(child, "Seccomp_filters") == "2");
    CHECK(status_of(child, "PPid") == std::to_string(::getpid()));
    CHECK(os::oom_score_adj_of(child).value() == 500);
    // The host's network, as the spec has it, and its own mounts and PIDs.
    const std::string ns = fmt::format("/proc/{}/ns/", child);
    CHECK(fs::read_symlink(ns + "net") == fs::read_symlink("/proc/self/ns/net"));
    CHECK(fs::read_symlink(ns + "mnt") != fs::read_symlink(proc + "ns/mnt"));
    CHECK(fs::read_symlink(ns + "pid") != fs::read_symlink(proc + "ns/pid"));
    // The control socket and three streams, no end of the zygote's.
    CHECK(std::distance(fs::directory_iterator(fmt::format("/proc/{}/fd", child)),
                        fs::directory_iterator()) == 4);
    REQUIRE(f.io.run(f.driver->start(id)));
    CHECK(f.exit_code(id) == 0);
  }
  SECTION("it dies, and the next container has another") {
    REQUIRE(::kill(zygote, SIGKILL) == 0);
    CHECK(f.one({"/hello.wasm"}).second == 0);
    REQUIRE(f.await_zygotes(1));
    CHECK(f.zygotes().front() != zygote);
  }
  SECTION("containers go on without it") {
    const std::string id = f.next_id();
    f.create(id, {"/hello.wasm"});
    REQUIRE(::kill(zygote, SIGKILL) == 0);
    REQUIRE(f.io.run(f.driver->start(id)));
    CHECK(f.exit_code(id) == 0);
  }
  SECTION("it ends with the driver, and the next driver begins without") {
    f.end();
    f.restart({f.config});
    CHECK(f.zygotes().empty());
    f.begin();
    CHECK(f.one({"/hello.wasm"}).second == 0);
    CHECK(f.zygotes().empty());
    CHECK(f.one({"/hello.wasm"}).second == 0);
    CHECK(f.zygotes().size() == 1);
  }
}

TEST_CASE("module zygotes: contracts are those of any container", "[root][wasm]") {
  Fixture f(each_engine());
  f.warm("/tool.wasm");
  CHECK(f.one({"/tool.wasm", "print", "well", "exit", "3"}) ==
        std::pair<std::string, int>("well\n", 3));
  REQUIRE(f.zygotes().size() == 1);
  const auto trap = f.one({"/tool.wasm", "print", "before", "trap"});
  CHECK(trap.second == 134);
  CHECK(trap.first.find("before\n") == 0);
  CHECK(trap.first.find("wasm trap: ") != std::string::npos);
  CHECK(f.one({"/tool.wasm#answer"}).first == "the answer is 42\n");
  CHECK(f.one({"/tool.wasm", "put", "/new", "text"}).second == 1);
  // Two children share no random numbers.
  std::set<std::string> numbers;
  for (int i = 0; i < 8; ++i) numbers.insert(f.one({"/tool.wasm", "random"}).first);
  CHECK(numbers.size() == 8);
  CHECK(f.zygotes().size() == 1);

  SECTION("an exec, whose memory has no limit of its own: a zygote of its own") {
    const std::string id = f.next_id();
    f.create(id, {"/tool.wasm", "sleep", "3600"});
    REQUIRE(f.io.run(f.driver->start(id)));
    const std::string file = f.dir / id / "exec.json";
    REQUIRE(write_file(file, f.process({"/tool.wasm", "print", "inside", "exit", "7"})));
    const auto streams = f.stdio(id, "e");
    task::ExecPlan exec;
    exec.ref = {id, "e"};
    exec.process_file = file;
    REQUIRE(f.io.run(f.driver->exec(std::move(exec), *streams)));
    CHECK(f.exit_code(id, "e") == 7);
    f.driver->forget_exec({id, "e"});
    REQUIRE(f.driver->signal({id, ""}, SIGTERM));
    CHECK(f.exit_code(id) == 143);
  }
  SECTION("another user has another zygote") {
    f.user = R"({"uid":1001,"gid":1002,"additionalGids":[7]})";
    CHECK(f.one({"/tool.wasm", "exit", "4"}).second == 4);
    REQUIRE(f.zygotes().size() == 2);
    std::set<std::string> users;
    for (const pid_t pid : f.zygotes()) users.insert(status_of(pid, "Uid"));
    CHECK(users.contains("1001\t1001\t1001\t1001"));
  }
}

TEST_CASE("module zygotes: where they are of no use, the engine's makes the container",
          "[root][wasm]") {
  Fixture f(each_engine());
  f.warm("/tool.wasm");
  REQUIRE(f.one({"/tool.wasm", "exit", "3"}).second == 3);
  REQUIRE(f.zygotes().size() == 1);

  SECTION("another module under the name of the image") {
    // As a tag that has moved.
    fs::create_directories(f.dir / "moved");
    fs::copy_file(wasm_modules() / "hello.wasm", f.dir / "moved/tool.wasm");
    task::ContainerPlan moved = f.plan(f.next_id(), {"/tool.wasm"});
    moved.rootfs_mounts = {{"bind", f.dir / "moved", {"rbind", "ro"}}};
    CHECK(f.live(std::move(moved)) == std::pair<std::string, int>("hello from wasm\n", 0));
    // The name is free for what it has now, and the zygote is as good as it was.
    CHECK(f.one({"/tool.wasm", "exit", "4"}).second == 4);
    CHECK(f.one({"/tool.wasm", "exit", "4"}).second == 4);
    CHECK(f.zygotes().size() == 1);
  }
  SECTION("a volume's place in a directory that only all capabilities open") {
    const fs::path root = f.dir / "private";
    fs::create_directories(root / "deep/volume");
    fs::copy_file(wasm_modules() / "tool.wasm", root / "tool.wasm");
    REQUIRE(::chown((root / "deep").c_str(), 5, 5) == 0);
    REQUIRE(::chmod((root / "deep").c_str(), 0700) == 0);
    const auto container = [&](const std::string& code) {
      task::ContainerPlan plan =
          f.plan(f.next_id(), {"/tool.wasm", "exit", code},
                 fmt::format(R"({{"destination":"/deep/volume","type":"bind","source":"{}",)"
                             R"("options":["rbind","ro"]}})",
                             f.dir.native()));
      plan.rootfs_mounts = {{"bind", root, {"rbind", "ro"}}};
      return plan;
    };
    CHECK(f.live(container("5")).second == 5);
    // It is not asked again, and goes.
    CHECK(f.await_zygotes(0));
    CHECK(f.live(container("6")).second == 6);
    CHECK(f.zygotes().empty());
  }
  SECTION("lower limits are no reason") {
    f.more_of_process += R"(,"rlimits":[{"type":"RLIMIT_NOFILE","soft":256,"hard":256}])";
    CHECK(f.one({"/tool.wasm", "exit", "5"}).second == 5);
    CHECK(f.zygotes().size() == 1);
  }
  SECTION("no score for the OOM killer: not the zygote's") {
    CHECK(os::oom_score_adj_of(f.zygotes().front()).value() == 1000);
    f.more_of_process.clear();
    const std::string id = f.next_id();
    f.create(id, {"/tool.wasm", "exit", "5"});
    CHECK(os::oom_score_adj_of(f.driver->host_pid({id, ""})).value() ==
          os::oom_score_adj_of(::getpid()).value());
  }
  SECTION("no module: as without") {
    const auto refused = [&](const std::string& module) {
      const Result<> created = f.try_create(f.plan(f.next_id(), {module}));
      return created ? "" : created.error().message;
    };
    CHECK(refused("/elf.wasm").find("is no WebAssembly module") != std::string::npos);
    CHECK(refused("/none.wasm").find("module \"/none.wasm\"") != std::string::npos);
  }
  SECTION("an image without a name") {
    f.image = "";
    CHECK(f.one({"/tool.wasm", "exit", "6"}).second == 6);
    CHECK(f.zygotes().size() == 1);
  }
  SECTION("its code is gone from the cache, or damaged") {
    REQUIRE(::kill(f.zygotes().front(), SIGKILL) == 0);
    for (const auto& entry : fs::directory_iterator(f.dir / "aot")) {
      const std::string whole = read_file(entry.path(), 64 << 20).value();
      fs::remove(entry.path());
      REQUIRE(write_file(entry.path(), whole.substr(0, whole.size() / 2), 0444));
    }
    CHECK(f.one({"/tool.wasm", "exit", "7"}).second == 7);
    CHECK(f.one({"/tool.wasm", "exit", "8"}).second == 8);
    CHECK(f.zygotes().empty());
  }
}

TEST_CASE("module zygotes: gone when nobody has wanted them for a while, and never too many",
          "[root][wasm]") {
  Fixture f(each_engine(), {.most = 1, .idle = 2s});
  f.warm("/hello.wasm");
  f.warm("/tool.wasm");
  CHECK(f.one({"/hello.wasm"}).second == 0);
  CHECK(f.zygotes().size() == 1);
  // The second has no place.
  CHECK(f.one({"/tool.wasm"}).second == 0);
  CHECK(f.zygotes().size() == 1);
  CHECK(f.await_zygotes(0));
  CHECK(f.one({"/tool.wasm"}).second == 0);
  CHECK(f.zygotes().size() == 1);
  CHECK(f.await_zygotes(0));
}

TEST_CASE("module zygotes: a volume whose place the image does not have", "[root][wasm]") {
  Fixture f(each_engine());
  f.warm("/tool.wasm");
  f.readonly = false;
  // An image of root's that has no place for the volume yet.
  const fs::path root = f.dir / "image";
  fs::create_directories(root);
  fs::copy_file(wasm_modules() / "tool.wasm", root / "tool.wasm");
  fs::create_directories(f.dir / "volume");
  fs::permissions(f.dir / "volume", fs::perms::all);
  const auto container = [&] {
    task::ContainerPlan plan =
        f.plan(f.next_id(), {"/tool.wasm", "put", "/deep/volume/file", "text"},
               fmt::format(R"({{"destination":"/deep/volume","type":"bind","source":"{}",)"
                           R"("options":["rbind","rw"]}})",
                           (f.dir / "volume").native()));
    plan.rootfs_mounts = {{"bind", root, {"rbind", "rw"}}};
    return plan;
  };
  CHECK(f.live(container()).second == 0);
  REQUIRE(f.zygotes().size() == 1);
  CHECK(read_file(f.dir / "volume/file").value() == "text");
  struct stat made {};
  REQUIRE(::stat((root / "deep/volume").c_str(), &made) == 0);
  CHECK(made.st_uid == 0);
  CHECK(made.st_gid == 0);
}

TEST_CASE("module zygotes: a start function runs in the container alone", "[root][wasm]") {
  Fixture f(each_engine());
  f.warm("/endless.wasm", false);
  const auto begin = [&] {
    const std::string id = f.next_id();
    f.create(id, {"/endless.wasm"});
    return id;
  };
  const std::string third = begin();
  REQUIRE(f.zygotes().size() == 1);
  REQUIRE(f.io.run(f.driver->start(third)));
  // The zygote is free for the next.
  const std::string fourth = begin();
  CHECK(f.zygotes().size() == 1);
  CHECK(f.driver->module_zygotes() == 1);
  REQUIRE(f.driver->signal({third, ""}, SIGTERM));
  CHECK(f.exit_code(third) == 143);
}

// In a process of its own: filters stay.
TEST_CASE("The filter of a module's zygote lets children be made and confined, and no more",
          "[wasm]") {
  const auto serving = wasm::build_filter({.loads_code = true, .serves = true});
  const int wrong_calls = in_filtered_child(serving, [] {
    const auto denied = [](long number) {
      return ::syscall(number, -1, nullptr, nullptr, 0, 0) == -1 && errno == ENOSYS;
    };
    const auto let_through = [](long number) {
      return ::syscall(number, -1, nullptr, 0, 0, 0) == -1 && errno != ENOSYS && errno != EPERM;
    };
    int wrong = 0;
    for (const long number : {SYS_execve,
                              SYS_execveat,
                              SYS_socket,
                              SYS_connect,
                              SYS_bind,
                              SYS_ptrace,
                              SYS_kill,
                              SYS_tgkill,
                              SYS_mount,
                              SYS_open_tree,
                              SYS_fsopen,
                              SYS_unshare,
                              SYS_bpf,
                              SYS_keyctl,
                              SYS_process_vm_writev,
                              SYS_pidfd_getfd,
                              SYS_init_module,
                              SYS_open_by_handle_at,
                              SYS_mknodat,
                              SYS_fchmodat,
                              SYS_fchownat,
                              SYS_perf_event_open,
                              SYS_io_uring_setup}) {
      if (!denied(number)) wrong = 1;
    }
    if (!let_through(SYS_clone3) || !let_through(SYS_move_mount)) wrong |= 2;
    if (::ioctl(0, TIOCSTI, "x") != -1 || errno != EPERM) wrong |= 4;
    return wrong;
  });
  CHECK(wrong_calls == 0);
}

}  // namespace kuasar::test
