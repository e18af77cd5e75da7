#include "task/oci_driver.h"

#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "async/fair_gate.h"
#include "base/files.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/direct_spawner.h"
#include "os/local_fd_holder.h"
#include "os/pidfd.h"
#include "support/io_fixture.h"
#include "support/recording_spawner.h"

// How execs are named, noted and found again. Our own process plays the part of every workload:
// it has a pid that can be looked at.

namespace kuasar::task {
namespace {

namespace fs = std::filesystem;
using Record = state::v1::ContainerState;

struct DriverFixture {
  test::IoFixture io;
  test::RecordingSpawner spawner;
  BlockingPool pool{1};
  FairGate gate{4, 2};
  os::LocalFdHolder holder;
  TaskGroup group{io.executor()};
  std::string dir;
  oci::RuntimeConfig config;

  DriverFixture() {
    char name[] = "/tmp/kuasar-driver-XXXXXX";
    dir = ::mkdtemp(name);
    REQUIRE(write_file(dir + "/runc", "#!/bin/sh\n", 0700));
    config.binary = dir + "/runc";
    config.root = dir;
  }
  ~DriverFixture() { fs::remove_all(dir); }

  static unsigned long long start_time() { return os::process_start_time(::getpid()).value(); }
  std::shared_ptr<Record> record() const {
    auto record = std::make_shared<Record>();
    record->set_id("c1");
    record->set_phase(Record::RUNNING);
    record->set_bundle(dir);
    record->mutable_init()->set_pid(::getpid());
    record->mutable_init()->set_start_time(start_time());
    return record;
  }
  ExecPlan plan() const { return {ProcessRef{"c1", "e1"}, dir, dir + "/exec-e1.json"}; }
  static ProcessRef exec_ref() { return {"c1", "e1"}; }
  static state::v1::ProcessIdentity identity(unsigned long long started) {
    state::v1::ProcessIdentity identity;
    identity.set_pid(::getpid());
    identity.set_start_time(started);
    return identity;
  }
};

TEST_CASE_METHOD(DriverFixture, "oci driver: an exec is adopted by name, noted and forgotten") {
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  REQUIRE(io.run(driver.recover(dir, record())).value());
  CHECK(driver.host_pid(exec_ref()) == 0);
  CHECK(driver.signal(exec_ref(), 9).error().code == Code::kNotFound);

  test::Playback runs;
  runs.effect = [this](const os::ProcessSpec&) {
    REQUIRE(write_file(dir + "/exec-e1.pid", std::to_string(::getpid())));
  };
  spawner.play(runs);
  StdioPlan no_streams;
  no_streams.container = "c1";
  no_streams.exec = "e1";
  const auto stdio = Stdio::open(group, io.executor(), holder, no_streams);
  REQUIRE(stdio);
  REQUIRE(io.run(driver.exec(plan(), **stdio)));
  CHECK(spawner.spawned().at(0).key == "c1/e1/exec/0");
  CHECK(spawner.adopted().back() == std::pair(std::string("c1/e1/process"), ::getpid()));
  CHECK(driver.host_pid(exec_ref()) == ::getpid());

  Record saved;
  saved.add_execs()->set_id("e1");
  saved.add_execs()->set_id("not-started");
  driver.save("c1", saved);
  CHECK(saved.execs(0).process().pid() == ::getpid());
  CHECK(saved.execs(0).process().start_time() == start_time());
  CHECK_FALSE(saved.execs(1).has_process());

  os::ExitStatus status;
  status.code = 9;
  spawner.end("c1/e1/process", status);
  CHECK(io.run(driver.wait_exit(exec_ref())).code == 9);
  driver.forget_exec(exec_ref());
  CHECK(io.run(spawner.find("c1/e1/process")).error().code == Code::kNotFound);
  CHECK_FALSE(fs::exists(dir + "/exec-e1.pid"));
  CHECK_FALSE(fs::exists(dir + "/exec-e1.log"));
  CHECK(driver.host_pid(exec_ref()) == 0);
}

TEST_CASE_METHOD(DriverFixture, "oci driver: recovery asks the spawner by name before the pid") {
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  REQUIRE(io.run(driver.recover(dir, record())).value());
  SECTION("the pid is that process") {
    CHECK(io.run(driver.recover_exec(exec_ref(), identity(start_time()))).value());
  }
  SECTION("the pid is another's by now") {
    CHECK_FALSE(io.run(driver.recover_exec(exec_ref(), identity(start_time() + 1))).value());
    CHECK(io.run(driver.wait_exit(exec_ref())).known == false);
  }
  SECTION("it ended while nobody was there, and the spawner knows how") {
    REQUIRE(io.run(spawner.adopt("c1/e1/process", ::getpid())));
    os::ExitStatus status;
    status.code = 42;
    spawner.end("c1/e1/process", status);
    const auto adopted = spawner.adopted().size();
    CHECK(io.run(driver.recover_exec(exec_ref(), identity(1))).value());
    CHECK(spawner.adopted().size() == adopted);
    CHECK(io.run(driver.wait_exit(exec_ref())).code == 42);
  }
}

TEST_CASE_METHOD(DriverFixture, "oci driver: recovery ends a create that was under way") {
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  REQUIRE(io.run(spawner.spawn("c1/-/create/0", {})));
  auto half = record();
  half->set_phase(Record::CREATING);
  half->clear_init();
  CHECK_FALSE(io.run(driver.recover(dir, half)).value());
  CHECK(io.run(spawner.find("c1/-/create/0")).error().code == Code::kNotFound);
}

TEST_CASE_METHOD(DriverFixture, "oci driver: a container keeps the runtime that its record names") {
  // What the record names is used, whatever the configuration says by now.
  for (const char* name : {"/crun", "/youki"}) REQUIRE(write_file(dir + name, "#!/bin/sh\n", 0700));
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  for (const char* id : {"c1", "c2", "c3"}) {
    auto its = record();
    its->set_id(id);
    if (id[1] == '1') its->set_runtime(dir + "/crun");
    if (id[1] == '2') its->set_runtime(dir + "/youki");
    REQUIRE(io.run(driver.recover(dir, its)));
    REQUIRE(io.run(driver.start(id)));
  }
  REQUIRE(spawner.spawned().size() == 3);
  CHECK(spawner.spawned()[0].spec.argv[0] == dir + "/crun");
  CHECK(spawner.spawned()[1].spec.argv[0] == dir + "/youki");
  CHECK(spawner.spawned()[2].spec.argv[0] == dir + "/runc");
}

TEST_CASE_METHOD(DriverFixture, "oci driver: a start reads runc's FIFO, or its runtime is run") {
  // The part of the init is a shell's.
  os::DirectSpawner children;
  oci::OciRuntimes runtimes(children, gate, config);
  OciDriver driver(children, pool, holder, runtimes);
  const std::string fifo = dir + "/c1/exec.fifo";
  REQUIRE(make_dir(dir + "/c1"));
  REQUIRE(::mkfifo(fifo.c_str(), 0622) == 0);
  REQUIRE(write_file(dir + "/runc", "#!/bin/sh\necho \"$@\" > " + dir + "/asked\n", 0700));
  const char* layout = "state.json";
  const char* hooks = "{}";
  bool asked = true;
  SECTION("a container of runc's") {
    asked = false;
  }
  SECTION("of runc's, with hooks that its start runs") {
    hooks = R"({"poststart": [{"path": "/bin/true"}]})";
  }
  SECTION("of crun's") {
    layout = "status";
  }
  REQUIRE(write_file(dir + "/c1/" + layout, "{}"));
  REQUIRE(write_file(dir + "/config.json", fmt::format(R"({{"hooks": {}}})", hooks)));

  os::ProcessSpec spec;
  spec.argv = {"sh", "-c", "exec 5>" + fifo + "; printf 0 >&5 && exit 42"};
  spec.env = {"PATH=/usr/bin:/bin"};
  const auto init = io.run(children.spawn("c1/-/process", std::move(spec)));
  REQUIRE(init);
  auto its = record();
  its->set_phase(Record::CREATED);
  its->mutable_init()->set_pid(init->pid);
  its->mutable_init()->set_start_time(os::process_start_time(init->pid).value());
  REQUIRE(io.run(driver.recover(dir, its)).value());
  REQUIRE(io.run(driver.start("c1")));
  CHECK(fs::exists(dir + "/asked") == asked);
  if (asked) REQUIRE(os::pidfd_signal(init->pidfd.get(), 9));
  CHECK(io.run(driver.wait_exit({"c1", ""})).code == (asked ? 137 : 42));
}

TEST_CASE_METHOD(DriverFixture, "oci driver: a watch of what runs on keeps no io_context running") {
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  REQUIRE(io.run(driver.recover(dir, record())).value());
  bool ended = false;
  driver.on_exit(io.executor(), {"c1", ""}, [&ended] { ended = true; });
  CHECK_FALSE(io.comes_to_rest(std::chrono::milliseconds(50)));
  driver.stop_watching();
  CHECK(io.comes_to_rest());
  CHECK_FALSE(ended);
}

TEST_CASE_METHOD(DriverFixture, "oci driver: what may name a runtime") {
  oci::OciRuntimes runtimes(spawner, gate, config);
  OciDriver driver(spawner, pool, holder, runtimes);
  CHECK(driver.runtime_for("").value() == dir + "/runc");
  CHECK(driver.runtime_for("crun").value() == "crun");
  CHECK(driver.runtime_for("/opt/x y/crun-1.28").value() == "/opt/x y/crun-1.28");
  for (const std::string& bad :
       {std::string("bin/crun"), std::string("./crun"), std::string("../crun"), std::string("/"),
        std::string("."), std::string(".."), std::string("/usr/bin/"), std::string("/usr/.."),
        std::string("a\nb"), std::string("a\0b", 3), std::string(5000, 'x')}) {
    const auto refused = driver.runtime_for(bad);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Code::kInvalidArgument);
    CHECK(refused.error().message.starts_with("options.BinaryName: "));
    CHECK(refused.error().message.size() < 400);
  }
}

}  // namespace
}  // namespace kuasar::task
