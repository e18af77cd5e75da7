#include "wasm_driver.h"

#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "async/task_group.h"
#include "base/files.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/direct_spawner.h"
#include "os/local_fd_holder.h"
#include "os/mount.h"
#include "os/pidfd.h"
#include "os/process_usage.h"
#include "support/io_fixture.h"
#include "support/wasm_driver_fixture.h"
#include "support/wasm_engine.h"

// WasmDriver with a real zygote and no containerd: recovery by a second driver, and the numbers.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using State = state::v1::ContainerState;

using Fixture = WasmDriverFixture;

int children() {
  int count = 0;
  std::istringstream children(
      read_file(fmt::format("/proc/self/task/{}/children", ::getpid())).value_or(""));
  for (pid_t pid = 0; children >> pid;) ++count;
  return count;
}

}  // namespace

TEST_CASE("wasm driver: a container created under one daemon is started by the next, once",
          "[root][wasm]") {
  Fixture f;
  f.create("c1", {"/tool.wasm", "exit", "7"});
  const auto record = f.record("c1", State::CREATED);
  f.restart();
  Result<bool> alive = f.io.run(f.driver->recover(f.dir / "c1", record));
  REQUIRE(alive);
  REQUIRE(*alive);
  REQUIRE(f.io.run(f.driver->start("c1")));
  CHECK(f.exit_code("c1") == 7);

  // A daemon that died after it had let it go starts it again: nothing happens.
  f.create("c2", {"/tool.wasm", "sleep", "3600"});
  const auto second = f.record("c2", State::CREATED);
  const Result<UniqueFd> control = f.holder.get("wasm/c2/-");
  REQUIRE(control);
  REQUIRE(f.io.run(f.driver->start("c2")));
  REQUIRE(f.holder.hold("wasm/c2/-", control->get()));
  f.restart();
  alive = f.io.run(f.driver->recover(f.dir / "c2", second));
  REQUIRE(alive);
  REQUIRE(*alive);
  CHECK(f.io.run(f.driver->start("c2")));
  CHECK(f.driver->signal({"c2", ""}, SIGTERM));
  CHECK(f.exit_code("c2") == 143);
}

TEST_CASE("wasm driver: a half-made container is undone", "[root][wasm]") {
  const int before = children();
  Fixture f;
  f.create("c1", {"/tool.wasm", "sleep", "3600"});
  const pid_t pid = f.driver->host_pid({"c1", ""});
  f.restart();
  auto creating = std::make_shared<State>();
  creating->set_id("c1");
  creating->set_phase(State::CREATING);
  creating->set_runtime("wasmedge");
  creating->set_bundle(f.dir / "c1");
  const Result<bool> alive = f.io.run(f.driver->recover(f.dir / "c1", creating));
  REQUIRE(alive);
  CHECK_FALSE(*alive);
  REQUIRE(f.io.run(f.driver->remove("c1")));
  CHECK_FALSE(os::process_start_time(pid));
  CHECK_FALSE(os::is_mountpoint(f.dir / "c1" / "rootfs"));
  CHECK(children() == before);
}

TEST_CASE("wasm driver: an exec that an earlier daemon was in runs once", "[root][wasm]") {
  Fixture f;
  f.create("c1", {"/tool.wasm", "sleep", "3600"});
  REQUIRE(f.io.run(f.driver->start("c1")));
  const auto running = f.record("c1", State::RUNNING);
  const std::string file = f.dir / "exec.json";
  REQUIRE(write_file(file, f.process({"/tool.wasm", "exit", "9"})));
  const task::ExecPlan plan{{"c1", "e1"}, f.dir / "c1", file};
  const auto streams = f.stdio("c1", "e1");
  const Result<> done = f.io.run(f.driver->exec(plan, *streams), 40s);
  INFO((done ? "" : done.error().message));
  REQUIRE(done);
  f.restart();
  REQUIRE(f.io.run(f.driver->recover(f.dir / "c1", running)));
  CHECK(f.io.run(f.driver->resume_exec(plan)));
  CHECK(f.exit_code("c1", "e1") == 9);
  f.driver->forget_exec(plan.ref);

  // Of this one nothing is known: it is to be run.
  const task::ExecPlan other{{"c1", "e2"}, f.dir / "c1", file};
  const Result<> unknown = f.io.run(f.driver->resume_exec(other));
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().code == Code::kNotFound);
  CHECK(f.driver->runtime_for("").value() == "wasmedge");
  CHECK(f.driver->runtime_for("wasmedge/module").value() == "wasmedge/module");
  CHECK(f.driver->runtime_for("v8/module").error().message ==
        "options.BinaryName: there is no WebAssembly engine \"v8\"; there is wasmedge");
  CHECK(f.driver->runtime_for("/usr/sbin/runc").error().message ==
        "options.BinaryName: there is no WebAssembly engine \"/usr/sbin/runc\"; there is wasmedge");
}

TEST_CASE("wasm driver: a refusal that an earlier daemon had not read is told", "[root][wasm]") {
  Fixture f;
  f.create("c1", {"/tool.wasm", "sleep", "3600"});
  REQUIRE(f.io.run(f.driver->start("c1")));
  const auto running = f.record("c1", State::RUNNING);
  const std::string file = f.dir / "exec.json";
  REQUIRE(write_file(file, f.process({"/tool.wasm", "sleep", "3600"})));
  const task::ExecPlan plan{{"c1", "e1"}, f.dir / "c1", file};
  const auto streams = f.stdio("c1", "e1");
  REQUIRE(f.io.run(f.driver->exec(plan, *streams), 40s));
  const pid_t pid = f.driver->host_pid(plan.ref);
  // As if it had not been let go, but had said this.
  Result<wasm::SocketPair> pair = wasm::make_socket_pair();
  REQUIRE(pair);
  REQUIRE(::send(pair->theirs.get(), "Enot to be run", 14, 0) == 14);
  REQUIRE(f.holder.hold("wasm/c1/e1", pair->ours.get()));
  f.restart();
  REQUIRE(f.io.run(f.driver->recover(f.dir / "c1", running)));
  const Result<> resumed = f.io.run(f.driver->resume_exec(plan));
  REQUIRE_FALSE(resumed);
  CHECK(resumed.error().code == Code::kFailedPrecondition);
  CHECK(resumed.error().message == "not to be run");
  CHECK_FALSE(os::process_start_time(pid));
}

TEST_CASE("wasm driver: a start whose daemon died after it is not an error", "[root][wasm]") {
  Fixture f;
  f.create("c1", {"/tool.wasm", "sleep", "3600"});
  f.create("c2", {"/tool.wasm", "exit", "7"});
  const auto first = f.record("c1", State::CREATED);
  const auto second = f.record("c2", State::CREATED);
  REQUIRE(f.io.run(f.driver->start("c1")));
  REQUIRE(f.io.run(f.driver->start("c2")));
  CHECK(f.exit_code("c2") == 7);
  f.restart();
  REQUIRE(f.io.run(f.driver->recover(f.dir / "c1", first)));
  REQUIRE(f.io.run(f.driver->recover(f.dir / "c2", second)));
  for (const char* id : {"c1", "c2"}) {
    const Result<> again = f.io.run(f.driver->start(id));
    INFO(id << ": " << (again ? "" : again.error().message));
    CHECK(again);
  }
  CHECK(f.driver->signal({"c1", ""}, SIGTERM));
  CHECK(f.exit_code("c1") == 143);
  CHECK(f.exit_code("c2") == 7);

  // This one was never let go, and its socket died with its holder.
  f.create("c3", {"/tool.wasm", "sleep", "3600"});
  f.holder.drop("wasm/c3/-");
  CHECK(f.exit_code("c3") == 255);
  const Result<> lost = f.io.run(f.driver->start("c3"));
  REQUIRE_FALSE(lost);
  CHECK(lost.error().code == Code::kFailedPrecondition);
}

TEST_CASE("wasm driver: an exec has the oom_score_adj of its container", "[root][wasm]") {
  Fixture f;
  task::ContainerPlan plan = f.plan("c1", {"/tool.wasm", "sleep", "3600"});
  REQUIRE(plan.spec.set_oom_score_adj(321));
  f.create(std::move(plan));
  REQUIRE(f.io.run(f.driver->start("c1")));
  const std::string file = f.dir / "exec.json";
  REQUIRE(write_file(file, f.process({"/tool.wasm", "sleep", "3600"})));
  const auto streams = f.stdio("c1", "e1");
  const Result<> done = f.io.run(f.driver->exec({{"c1", "e1"}, f.dir / "c1", file}, *streams), 40s);
  INFO((done ? "" : done.error().message));
  REQUIRE(done);
  const auto score = [&](const std::string& exec) {
    const pid_t pid = f.driver->host_pid({"c1", exec});
    return read_file(fmt::format("/proc/{}/oom_score_adj", pid)).value_or("");
  };
  CHECK(score("") == "321\n");
  CHECK(score("e1") == "321\n");
  CHECK(f.driver->signal({"c1", "e1"}, SIGKILL));
  CHECK(f.exit_code("c1", "e1") == 137);
  // DirectSpawner reaps it only then, and its namespace does not end before.
  f.driver->forget_exec({"c1", "e1"});
}

TEST_CASE("wasm driver: device nodes of an image and of a volume do not open", "[root][wasm]") {
  Fixture f;
  const fs::path image = f.dir / "image";
  fs::create_directories(image / "dev");
  fs::create_directories(image / "volume");
  fs::copy_file(fs::path(wasm_modules()) / "tool.wasm", image / "tool.wasm");
  // The null device: whoever may open it reads nothing and ends with 0.
  REQUIRE(::mknod((image / "node").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
  REQUIRE(::chmod((image / "node").c_str(), 0666) == 0);
  const std::string mounts = fmt::format(
      R"({{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid"]}},)"
      R"({{"destination":"/volume","type":"bind","source":"{}","options":["rbind","dev"]}})",
      image.string());
  int count = 0;
  const auto cat = [&](const std::string& path) {
    const std::string id = fmt::format("c{}", ++count);
    task::ContainerPlan plan = f.plan(id, {"/tool.wasm", "cat", path}, mounts);
    plan.rootfs_mounts = {{"bind", image, {"rbind"}}};
    return f.run(std::move(plan));
  };
  CHECK(cat("/dev/null") == 0);
  CHECK(cat("/node") == 1);
  CHECK(cat("/volume/node") == 1);
}

TEST_CASE("wasm driver: no volume brings a procfs in", "[root][wasm]") {
  Fixture f;
  const fs::path tree = f.dir / "tree";
  fs::create_directories(tree / "volume");
  fs::copy_file(fs::path(wasm_modules()) / "tool.wasm", tree / "tool.wasm");
  fs::create_directories(tree / "proc");
  fs::create_directories(tree / "beside");
  REQUIRE(::mount("proc", (tree / "proc").c_str(), "proc", 0, nullptr) == 0);
  const Unmount unmount{tree / "proc"};
  int count = 0;
  const auto create = [&](const fs::path& source, const std::string& bind) {
    const std::string mount = fmt::format(
        R"({{"destination":"/volume","type":"bind","source":"{}","options":["{}","ro"]}})",
        source.string(), bind);
    task::ContainerPlan plan =
        f.plan(fmt::format("c{}", ++count), {"/tool.wasm", "exit", "0"}, mount);
    plan.rootfs_mounts = {{"bind", tree, {"bind"}}};
    return f.try_create(std::move(plan));
  };
  fs::create_directory_symlink(tree, f.dir / "link");
  for (const auto& [source, bind] :
       std::vector<std::pair<fs::path, std::string>>{{tree, "rbind"},
                                                     {f.dir / "link", "rbind"},
                                                     {tree / "proc", "bind"},
                                                     {tree / "proc" / "sys", "rbind"},
                                                     {tree / "proc" / "self" / "status", "bind"}}) {
    INFO(source << " " << bind);
    const Result<> refused = create(source, bind);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Code::kUnimplemented);
    CHECK(refused.error().message.find("procfs") != std::string::npos);
  }
  // What lies beside it, and the tree without what is mounted in it.
  CHECK(create(tree / "beside", "rbind"));
  CHECK(create(tree, "bind"));
}

TEST_CASE("wasm driver: no option of a mount is ignored", "[root][wasm]") {
  Fixture f;
  const fs::path image = f.dir / "image";
  fs::create_directories(image / "volume");
  fs::copy_file(fs::path(wasm_modules()) / "tool.wasm", image / "tool.wasm");
  int count = 0;
  std::string id;
  const auto create = [&](const std::string& type, const std::string& option) {
    const std::string mount =
        fmt::format(R"({{"destination":"/volume","type":"{}","source":"{}","options":["{}"]}})",
                    type, image.string(), option);
    id = fmt::format("c{}", ++count);
    task::ContainerPlan plan = f.plan(id, {"/tool.wasm", "exit", "0"}, mount);
    plan.rootfs_mounts = {{"bind", image, {"rbind"}}};
    return f.try_create(std::move(plan));
  };
  for (const char* option : {"sync", "dirsync", "nosymfollow", "no-such-option"}) {
    INFO(option);
    const Result<> refused = create("bind", option);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.find(std::string_view(option).substr(0, 6)) != std::string::npos);
  }
  CHECK_FALSE(create("tmpfs", "no-such-option"));
  for (const auto& [type, option] : std::vector<std::pair<std::string, std::string>>{
           {"bind", "noatime"}, {"tmpfs", "noatime"}, {"bind", "nodiratime"}, {"bind", "noexec"}}) {
    INFO(type << " " << option);
    REQUIRE(create(type, option));
    const std::string mounts =
        read_file(fmt::format("/proc/{}/mountinfo", f.driver->host_pid({id, ""}))).value_or("");
    const std::size_t at = mounts.find(" /volume ");
    REQUIRE(at != std::string::npos);
    INFO(mounts);
    CHECK(mounts.substr(at, mounts.find('\n', at) - at).find(option) != std::string::npos);
  }
}

TEST_CASE("wasm driver: a volume that is mapped into the pod's user namespace", "[root][wasm]") {
  Fixture f;
  const pid_t holder = ::fork();
  if (holder == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(1);
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(holder, &status, WUNTRACED) == holder);
  REQUIRE(WIFSTOPPED(status));
  const std::string proc = fmt::format("/proc/{}", holder);
  REQUIRE(write_file(proc + "/uid_map", "0 1000000 65536\n"));
  REQUIRE(write_file(proc + "/gid_map", "0 1000000 65536\n"));
  const fs::path image = f.dir / "image";
  const fs::path data = f.dir / "data";
  fs::create_directories(image / "volume");
  fs::create_directories(data);
  fs::copy_file(fs::path(wasm_modules()) / "tool.wasm", image / "tool.wasm");
  REQUIRE(os::mount_tmpfs(data, "data", 0755, 1 << 20, false));
  const Unmount unmount{data};
  REQUIRE(::chown(data.c_str(), 1000, 1000) == 0);
  int count = 0;
  const auto plan_with = [&](const std::string& maps) {
    const std::string map = R"([{"containerID":0,"hostID":1000000,"size":65536}])";
    const std::string id = fmt::format("c{}", ++count);
    const std::string text = fmt::format(
        R"({{"process":{0},"root":{{"path":"rootfs"}},"linux":{{"namespaces":[{{"type":"pid"}},)"
        R"({{"type":"mount"}},{{"type":"user","path":"{1}/ns/user"}}],"uidMappings":{2},)"
        R"("gidMappings":{2}}},"mounts":[{{"destination":"/volume","type":"bind","source":"{3}",)"
        R"("options":["rbind"]{4}}}]}})",
        f.process({"/tool.wasm", "put", "/volume/" + id, "x"}), proc, map, data.string(),
        maps.empty() ? "" : fmt::format(R"(,"uidMappings":{0},"gidMappings":{0})", maps));
    Result<oci::Spec> spec = oci::Spec::parse(text);
    REQUIRE(spec);
    task::ContainerPlan plan = f.plan(id, {"/tool.wasm", "exit", "0"});
    plan.rootfs_mounts = {{"bind", image, {"rbind"}}};
    plan.spec = std::move(*spec);
    return plan;
  };
  // User 1000 of the container is 1001000 of the host.
  CHECK(f.run(plan_with("")) == 1);
  CHECK(f.run(plan_with(R"([{"containerID":0,"hostID":1000000,"size":65536}])")) == 0);
  struct stat st {};
  REQUIRE(::stat((data / "c2").c_str(), &st) == 0);
  CHECK(st.st_uid == 1000);
  CHECK(st.st_gid == 1000);
  const Result<> other =
      f.try_create(plan_with(R"([{"containerID":0,"hostID":2000000,"size":65536}])"));
  REQUIRE_FALSE(other);
  CHECK(other.error().code == Code::kUnimplemented);
  CHECK(::kill(holder, SIGKILL) == 0);
  CHECK(::waitpid(holder, &status, 0) == holder);
}

TEST_CASE("wasm driver: a process that closes its control socket and lives on is killed",
          "[root][wasm]") {
  Fixture f;
  f.holder.deaf = true;
  const Result<> created = f.try_create(f.plan("c1", {"/tool.wasm", "sleep", "3600"}));
  REQUIRE_FALSE(created);
  CHECK(created.error().code == Code::kResourceExhausted);
  CHECK(created.error().message.find("signal 9") != std::string::npos);
}

}  // namespace kuasar::test
