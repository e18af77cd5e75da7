#include "task/oci_driver.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "async/gate.h"
#include "base/files.h"
#include "kuasar/state/v1/state.pb.h"
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
  Gate gate{4};
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
  oci::OciRuntime runtime(spawner, gate, config);
  OciDriver driver(spawner, pool, runtime);
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
  oci::OciRuntime runtime(spawner, gate, config);
  OciDriver driver(spawner, pool, runtime);
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
  oci::OciRuntime runtime(spawner, gate, config);
  OciDriver driver(spawner, pool, runtime);
  REQUIRE(io.run(spawner.spawn("c1/-/create/0", {})));
  auto half = record();
  half->set_phase(Record::CREATING);
  half->clear_init();
  CHECK_FALSE(io.run(driver.recover(dir, half)).value());
  CHECK(io.run(spawner.find("c1/-/create/0")).error().code == Code::kNotFound);
}

}  // namespace
}  // namespace kuasar::task
