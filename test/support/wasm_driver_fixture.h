#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async/task_group.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/direct_spawner.h"
#include "os/local_fd_holder.h"
#include "os/mount.h"
#include "support/io_fixture.h"
#include "support/wasm_engine.h"
#include "support/wasm_worker.h"
#include "wasm_driver.h"

namespace kuasar::test {

inline std::vector<wasm::EngineConfig> lab_engines() {
  return {lab_engine()};
}

struct Unmount {
  std::filesystem::path target;
  ~Unmount() { (void)os::unmount_all(target); }
};

/// A fake in one respect: our end of a control socket reads as ended at once, as it does when a
/// child that broke out of its engine closes the other one and lives on.
struct DeafHolder : os::LocalFdHolder {
  bool deaf = false;

  Result<> hold(const std::string& name, int fd) override {
    if (deaf && name.starts_with("wasm/") && ::shutdown(fd, SHUT_RD) != 0) {
      return fail_errno("shutdown", name);
    }
    return os::LocalFdHolder::hold(name, fd);
  }
};

// A daemon's driver; what outlives a daemon is outside of it.
struct WasmDriverFixture {
  IoFixture io;
  os::DirectSpawner spawner;
  DeafHolder holder;
  BlockingPool pool{2};
  TaskGroup group{io.executor()};
  std::filesystem::path dir;
  std::unique_ptr<wasm::WasmDriver> driver;
  std::vector<std::string> ids;
  /// Of new containers: a RunMode, the name of the image, the user and more of the process as JSON.
  std::string engine = "wasmedge";
  std::string image;
  std::string user = R"({"uid":1000,"gid":1000})";
  std::string more_of_process = R"(,"oomScoreAdj":500)";
  bool readonly = true;
  /// The cgroup that their cgroups are made in, such as "/pod"; empty: they have none.
  std::string cgroup_parent;
  /// Standard output and errors of processes, by container; what is not here goes to /dev/null.
  std::map<std::string, UniqueFd> outputs;

  WasmDriverFixture() {
    restart(lab_engines());
    char name[] = "/tmp/kuasar-wasm-XXXXXX";
    dir = ::mkdtemp(name);
  }
  virtual ~WasmDriverFixture() {
    for (const std::string& id : ids) {
      (void)io.run(driver->remove(id));
      // What a later driver has not taken over it does not know.
      (void)os::unmount_all(dir / id / "rootfs");
    }
    driver.reset();
    std::filesystem::remove_all(dir);
  }
  void restart(std::vector<wasm::EngineConfig> configs = lab_engines(),
               wasm::WasmDriver::Limits limits = {}) {
    // Its zygote goes with a driver, as with a daemon.
    driver.reset();
    const wasm::RunMode standard{configs.front().name, false};
    driver = std::make_unique<wasm::WasmDriver>(spawner, pool, holder, std::move(configs),
                                                worker_program(), standard, limits);
  }
  std::shared_ptr<task::Stdio> stdio(const std::string& id, const std::string& exec = "") {
    task::StdioPlan plan;
    plan.container = id;
    plan.exec = exec;
    plan.console_dir = dir;
    if (outputs.contains(id) && exec.empty()) {
      plan.paths.stdout_path = dir / (id + ".out");
      plan.paths.stderr_path = plan.paths.stdout_path;
    }
    Result<std::shared_ptr<task::Stdio>> opened =
        task::Stdio::open(group, io.executor(), holder, plan);
    REQUIRE(opened);
    return *opened;
  }
  std::string process(const std::vector<std::string>& args) const {
    std::string words;
    for (const std::string& arg : args) words += (words.empty() ? "\"" : ",\"") + arg + "\"";
    return fmt::format(R"({{"args":[{}],"cwd":"/","user":{}{}}})", words, user, more_of_process);
  }
  void keep_output(const std::string& id) {
    const std::string path = dir / (id + ".out");
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    outputs[id] = UniqueFd(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(outputs[id]);
  }
  /// What there is of it.
  std::string output(const std::string& id) const {
    std::string text;
    char buffer[4096];
    ssize_t n;
    while ((n = ::read(outputs.at(id).get(), buffer, sizeof buffer)) > 0) text.append(buffer, n);
    return text;
  }
  task::ContainerPlan plan(const std::string& id, const std::vector<std::string>& args,
                           const std::string& mounts = "") {
    ids.push_back(id);
    std::filesystem::create_directories(dir / id / "rootfs");
    const std::string text = fmt::format(
        R"({{"process":{},"root":{{"path":"rootfs","readonly":{}}},"mounts":[{}],)"
        R"("annotations":{{{}}},)"
        R"("linux":{{{}"namespaces":[{{"type":"pid"}},{{"type":"mount"}}]}}}})",
        process(args), readonly, mounts,
        image.empty() ? "" : R"("io.kubernetes.cri.image-name":")" + image + "\"",
        cgroup_parent.empty() ? "" : fmt::format(R"("cgroupsPath":"{}/{}",)", cgroup_parent, id));
    Result<oci::Spec> spec = oci::Spec::parse(text);
    REQUIRE(spec);
    task::ContainerPlan plan;
    plan.id = id;
    plan.dir = dir / id;
    plan.rootfs = dir / id / "rootfs";
    plan.rootfs_mounts = {{"bind", wasm_modules(), {"rbind", "ro"}}};
    plan.spec = std::move(*spec);
    plan.runtime = engine;
    return plan;
  }
  Result<> try_create(task::ContainerPlan plan) {
    const auto streams = stdio(plan.id);
    Result<> created = io.run(driver->create(std::move(plan), *streams), std::chrono::seconds(40));
    streams->drop_process_ends();
    return created;
  }
  void create(task::ContainerPlan plan) {
    const Result<> created = try_create(std::move(plan));
    INFO((created ? "" : created.error().message));
    REQUIRE(created);
  }
  void create(const std::string& id, const std::vector<std::string>& args) {
    create(plan(id, args));
  }
  // The exit code of a whole life.
  int run(task::ContainerPlan plan) {
    const std::string id = plan.id;
    create(std::move(plan));
    REQUIRE(io.run(driver->start(id)));
    return exit_code(id);
  }
  std::shared_ptr<state::v1::ContainerState> record(const std::string& id,
                                                    state::v1::ContainerState::Phase phase) const {
    auto state = std::make_shared<state::v1::ContainerState>();
    state->set_id(id);
    state->set_phase(phase);
    state->set_runtime("wasmedge");
    state->set_bundle(dir / id);
    driver->save(id, *state);
    return state;
  }
  int exit_code(const std::string& id, const std::string& exec = "") {
    return io.run(driver->wait_exit({id, exec})).code;
  }
};

}  // namespace kuasar::test
