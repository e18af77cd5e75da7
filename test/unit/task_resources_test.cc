#include <google/protobuf/any.pb.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <limits>
#include <string>
#include <vector>

#include "containerd/cgroups/v1/metrics.pb.h"
#include "containerd/cgroups/v2/metrics.pb.h"
#include "containerd/runc/v1/options.pb.h"
#include "support/cgroup_tree.h"
#include "task/any.h"
#include "task/cgroup_stats.h"
#include "task/convert.h"
#include "unit/task_fixture.h"

// Pause, limits, usage, the OOM killer and checkpoints, over fakes.

namespace kuasar::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using google::protobuf::Empty;
using Strings = std::vector<std::string>;

struct ResourcesFixture : TaskFixture {
  void run_container(const std::string& id) {
    REQUIRE(create(id));
    REQUIRE(start(id));
    driver.calls.clear();
    sink.topics.clear();
  }
  ttrpc::CallContext again() {
    ttrpc::CallContext repeated = context();
    repeated.redelivered = true;
    return repeated;
  }
  Result<Empty> pause(const std::string& id) {
    return io.run(service.pause(about<task::api::PauseRequest>(id), context()));
  }
  Result<Empty> resume(const std::string& id) {
    return io.run(service.resume(about<task::api::ResumeRequest>(id), context()));
  }
  Result<Empty> update(const std::string& id, const std::string& json,
                       const std::string& type =
                           "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources") {
    auto request = about<task::api::UpdateTaskRequest>(id);
    request.mutable_resources()->set_type_url(type);
    request.mutable_resources()->set_value(json);
    return io.run(service.update(std::move(request), context()));
  }
  containerd::v1::types::Status status_of(const std::string& id) { return state(id)->status(); }
  std::size_t told(const std::string& topic) const {
    return static_cast<std::size_t>(std::count(sink.topics.begin(), sink.topics.end(), topic));
  }
};

}  // namespace

TEST_CASE_METHOD(ResourcesFixture, "task pause: a container stops, says so, and goes on") {
  REQUIRE(create("c1"));
  CHECK(pause("c1").error().code == Code::kFailedPrecondition);
  REQUIRE(start("c1"));
  CHECK(resume("c1").error().code == Code::kFailedPrecondition);
  REQUIRE(pause("c1"));
  CHECK(driver.is_frozen.contains("c1"));
  CHECK(status_of("c1") == containerd::v1::types::PAUSED);
  CHECK_THAT(pause("c1").error().message, ContainsSubstring("c1 is paused"));
  // A repeated call whose answer was lost.
  driver.calls.clear();
  CHECK(io.run(service.pause(about<task::api::PauseRequest>("c1"), again())));
  // The daemon before may not have waited for the last process to stop.
  CHECK(driver.calls == Strings{"freeze c1"});

  auto exec = about<task::api::ExecProcessRequest>("c1", "e1");
  const auto refused = io.run(service.exec(std::move(exec), context()));
  CHECK_THAT(refused.error().message, ContainsSubstring("c1 is paused"));
  CHECK_THAT(remove("c1").error().message, ContainsSubstring("c1 is paused; kill it first"));

  REQUIRE(resume("c1"));
  CHECK_FALSE(driver.is_frozen.contains("c1"));
  CHECK(status_of("c1") == containerd::v1::types::RUNNING);
  CHECK(io.run(service.resume(about<task::api::ResumeRequest>("c1"), again())));
  CHECK(told("/tasks/paused") == 1);
  CHECK(told("/tasks/resumed") == 1);
  CHECK(pause("none").error().code == Code::kNotFound);
}

TEST_CASE_METHOD(ResourcesFixture, "task pause: what the freezer refuses leaves it running") {
  run_container("c1");
  driver.resource_error = Error::make(Code::kDeadlineExceeded, "does not freeze");
  CHECK(pause("c1").error().code == Code::kDeadlineExceeded);
  CHECK(status_of("c1") == containerd::v1::types::RUNNING);
  CHECK(sink.topics.empty());
}

TEST_CASE_METHOD(ResourcesFixture, "task pause: SIGKILL thaws what it is to kill, SIGTERM waits") {
  run_container("c1");
  REQUIRE(pause("c1"));
  REQUIRE(kill("c1", 15));
  CHECK(driver.is_frozen.contains("c1"));
  driver.killable = false;
  REQUIRE(kill("c1", 9));
  CHECK_FALSE(driver.is_frozen.contains("c1"));
  CHECK(driver.calls == Strings{"freeze c1", "signal c1 15", "signal c1 9", "thaw c1"});
  // Nobody freezes what is being killed.
  CHECK_THAT(pause("c1").error().message, ContainsSubstring("being killed"));
  CHECK_FALSE(driver.is_frozen.contains("c1"));
  driver.end_init("c1", 137);
  CHECK(wait("c1")->exit_status() == 137);
  REQUIRE(remove("c1"));
}

TEST_CASE_METHOD(ResourcesFixture, "task pause: a pod's removal ends a paused container") {
  run_container("c1");
  REQUIRE(pause("c1"));
  REQUIRE(io.run(service.remove_all("p1")));
  CHECK(state("c1")->status() == ::containerd::v1::types::STOPPED);
}

TEST_CASE_METHOD(ResourcesFixture, "task pause: after a restart the freezer says who is paused") {
  auto record = std::make_shared<state::v1::ContainerState>();
  record->set_id("c1");
  record->set_sandbox_id("p1");
  record->set_bundle((dir / "c1").native());
  record->set_phase(state::v1::ContainerState::RUNNING);
  record->mutable_init()->set_pid(1);
  const bool frozen = GENERATE(true, false);
  if (frozen) driver.is_frozen.insert("c1");
  io.run(service.recover(dir.native(), record));
  CHECK(status_of("c1") ==
        (frozen ? containerd::v1::types::PAUSED : containerd::v1::types::RUNNING));
}

TEST_CASE_METHOD(ResourcesFixture, "task update: limits reach the driver, other types do not") {
  run_container("c1");
  REQUIRE(update("c1", R"({"memory":{"limit":1048576}})"));
  REQUIRE(driver.updates.size() == 1);
  CHECK(driver.updates[0].memory == 1048576);
  REQUIRE(pause("c1"));
  REQUIRE(update("c1", "{}"));
  CHECK(update("c1", "{}", "x").error().code == Code::kInvalidArgument);
  CHECK(update("c1", "{").error().code == Code::kInvalidArgument);
  CHECK(update("c2", "{}").error().code == Code::kNotFound);
  driver.end_init("c1", 0);
  REQUIRE(wait("c1"));
  CHECK_THAT(update("c1", "{}").error().message, ContainsSubstring("c1 is stopped"));
}

TEST_CASE_METHOD(ResourcesFixture, "T4: task stats: the type URL is the bare name of the message") {
  run_container("c1");
  const auto stats = io.run(service.stats(about<task::api::StatsRequest>("c1"), context()));
  REQUIRE(stats);
  CHECK(stats->stats().type_url() == "io.containerd.cgroups.v2.Metrics");
  CHECK(io.run(service.stats(about<task::api::StatsRequest>("c2"), context())).error().code ==
        Code::kNotFound);
}

TEST_CASE_METHOD(ResourcesFixture, "T3: task oom: told at the end, before the end itself") {
  run_container("c1");
  driver.ooms["c1"] = 1;
  driver.end_init("c1", 137);
  REQUIRE(wait("c1"));
  CHECK(sink.topics == Strings{"/tasks/oom", "/tasks/exit"});
  CHECK(sink.drains == 1);
}

TEST_CASE_METHOD(ResourcesFixture, "task oom: a killed child is told while the container lives") {
  run_container("c1");
  driver.oom("c1");
  io.run(sleep_for(std::chrono::milliseconds(1)));
  CHECK(told("/tasks/oom") == 1);
  driver.oom("c1");
  io.run(sleep_for(std::chrono::milliseconds(1)));
  CHECK(told("/tasks/oom") == 2);
  // Nothing new at the end.
  driver.end_init("c1", 0);
  REQUIRE(wait("c1"));
  CHECK(told("/tasks/oom") == 2);
  CHECK(sink.drains == 0);
}

TEST_CASE_METHOD(ResourcesFixture, "task checkpoint: options reach the driver") {
  run_container("c1");
  containerd::runc::v1::CheckpointOptions options;
  options.set_exit(true);
  options.set_open_tcp(true);
  options.set_file_locks(true);
  options.add_empty_namespaces("network");
  options.set_cgroups_mode("soft");
  auto request = about<task::api::CheckpointTaskRequest>("c1");
  request.set_path("/image");
  *request.mutable_options() = task::pack_any(options);
  REQUIRE(io.run(service.checkpoint(request, context())));
  REQUIRE(driver.checkpoints.size() == 1);
  const task::CheckpointPlan& plan = driver.checkpoints[0];
  CHECK(plan.image_path == "/image");
  CHECK(plan.exit);
  CHECK(plan.open_tcp);
  CHECK(plan.file_locks);
  CHECK_FALSE(plan.external_unix_sockets);
  CHECK(plan.empty_namespaces == Strings{"network"});
  CHECK(plan.cgroups_mode == "soft");
  CHECK(told("/tasks/checkpointed") == 1);

  request.set_path("relative");
  CHECK(io.run(service.checkpoint(request, context())).error().code == Code::kInvalidArgument);
  request.set_path("/image");
  REQUIRE(pause("c1"));
  CHECK_THAT(io.run(service.checkpoint(request, context())).error().message,
             ContainsSubstring("c1 is paused"));
}

TEST_CASE_METHOD(ResourcesFixture, "task checkpoint: repeated, an image that is there counts") {
  run_container("c1");
  auto request = about<task::api::CheckpointTaskRequest>("c1");
  request.set_path(dir.native());
  REQUIRE(io.run(service.checkpoint(request, again())));
  REQUIRE(write_file(dir / "inventory.img", "x"));
  // With "exit" its container has ended.
  driver.end_init("c1", 0);
  REQUIRE(wait("c1"));
  REQUIRE(io.run(service.checkpoint(request, again())));
  REQUIRE(driver.checkpoints.size() == 2);
  CHECK_FALSE(driver.checkpoints[0].written);
  CHECK(driver.checkpoints[1].written);
  CHECK(told("/tasks/checkpointed") == 1);
}

TEST_CASE("T4: cgroup stats: v1's files in v1's message") {
  FakeCgroups tree = FakeCgroups::v1();
  tree.write("cpuacct", "cpuacct.usage", "123456789\n");
  tree.write("cpuacct", "cpuacct.stat", "user 3\nsystem 4\n");
  tree.write("cpuacct", "cpuacct.usage_percpu", "100 23 \n");
  tree.write("cpu", "cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 77\n");
  tree.write("memory", "memory.usage_in_bytes", "8192\n");
  tree.write("memory", "memory.max_usage_in_bytes", "9000\n");
  tree.write("memory", "memory.failcnt", "1\n");
  tree.write("memory", "memory.stat",
             "cache 1\nrss 2\ntotal_rss 4096\ntotal_pgfault 11\ntotal_pgmajfault 12\n"
             "total_inactive_file 13\nhierarchical_memory_limit 99\nnew_in_some_kernel 5\n");
  tree.write("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n");
  tree.write("pids", "pids.current", "3\n");
  tree.write("pids", "pids.max", "max\n");
  tree.write("blkio", "blkio.throttle.io_service_bytes_recursive",
             "8:0 Read 4096\n8:0 Write 512\nTotal 4608\n");
  const auto any = task::cgroup_stats(tree.dirs());
  REQUIRE(any);
  CHECK(any->type_url() == "io.containerd.cgroups.v1.Metrics");
  io::containerd::cgroups::v1::Metrics metrics;
  REQUIRE(task::unpack_any(*any, metrics));
  CHECK(metrics.cpu().usage().total() == 123456789);
  CHECK(metrics.cpu().usage().user() == 30'000'000);
  CHECK(metrics.cpu().usage().per_cpu_size() == 2);
  CHECK(metrics.cpu().throttling().throttled_time() == 77);
  CHECK(metrics.memory().usage().usage() == 8192);
  CHECK(metrics.memory().usage().max() == 9000);
  CHECK(metrics.memory().usage().limit() == 9223372036854771712ULL);
  CHECK(metrics.memory().total_rss() == 4096);
  CHECK(metrics.memory().total_pg_fault() == 11);
  CHECK(metrics.memory().total_pg_maj_fault() == 12);
  CHECK(metrics.memory().total_inactive_file() == 13);
  CHECK(metrics.memory_oom_control().oom_kill() == 6);
  CHECK(metrics.pids().current() == 3);
  CHECK(metrics.pids().limit() == 0);
  REQUIRE(metrics.blkio().io_service_bytes_recursive_size() == 2);
  CHECK(metrics.blkio().io_service_bytes_recursive(1).op() == "Write");
  CHECK(metrics.blkio().io_service_bytes_recursive(1).value() == 512);
}

TEST_CASE("T4: cgroup stats: v2's files in v2's message, and a hybrid's in the memory's") {
  FakeCgroups tree = FakeCgroups::v2();
  tree.write("unified", "cpu.stat",
             "usage_usec 123456\nuser_usec 100\nsystem_usec 23\nnr_periods 5\nnr_throttled 2\n"
             "throttled_usec 9\n");
  tree.write("unified", "memory.current", "8192\n");
  tree.write("unified", "memory.stat", "anon 4096\nfile 1\ninactive_file 13\npgfault 11\n");
  tree.write("unified", "memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n");
  tree.write("unified", "pids.current", "3\n");
  tree.write("unified", "io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n");
  const auto any = task::cgroup_stats(tree.dirs());
  REQUIRE(any);
  CHECK(any->type_url() == "io.containerd.cgroups.v2.Metrics");
  io::containerd::cgroups::v2::Metrics metrics;
  REQUIRE(task::unpack_any(*any, metrics));
  CHECK(metrics.cpu().usage_usec() == 123456);
  CHECK(metrics.cpu().throttled_usec() == 9);
  CHECK(metrics.memory().usage() == 8192);
  CHECK(metrics.memory().usage_limit() == std::numeric_limits<std::uint64_t>::max());
  CHECK(metrics.memory().anon() == 4096);
  CHECK(metrics.memory().inactive_file() == 13);
  CHECK(metrics.memory_events().oom_kill() == 4);
  CHECK(metrics.pids().current() == 3);
  REQUIRE(metrics.io().usage_size() == 1);
  CHECK(metrics.io().usage(0).wios() == 4);

  FakeCgroups hybrid = FakeCgroups::hybrid();
  hybrid.write("unified", "memory.current", "4096\n");
  hybrid.write("cpuacct", "cpuacct.usage", "5000\n");
  const auto mixed = task::cgroup_stats(hybrid.dirs());
  REQUIRE(mixed);
  io::containerd::cgroups::v2::Metrics both;
  REQUIRE(task::unpack_any(*mixed, both));
  CHECK(both.memory().usage() == 4096);
  CHECK(both.cpu().usage_usec() == 5);
  CHECK(task::cgroup_stats({"/nowhere"}).error().code == Code::kNotFound);
}

}  // namespace kuasar::test
