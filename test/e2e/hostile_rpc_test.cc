#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "cri/runtime/v1/api.pb.h"
#include "e2e/hostile_stage.h"
#include "support/census.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"

// Ids and orders of calls that a decent containerd never sends, to a daemon without containerd.

namespace kuasar::test {
namespace {

namespace task = containerd::task::v3;
using Catch::Matchers::ContainsSubstring;

constexpr int kOk = 0;
constexpr int kInvalidArgument = 3;
constexpr int kNotFound = 5;
constexpr int kAlreadyExists = 6;
constexpr int kResourceExhausted = 8;
constexpr int kFailedPrecondition = 9;
constexpr int kInternal = 13;

struct HostileId {
  const char* name;
  std::string id;
};

std::vector<HostileId> hostile_ids() {
  return {{"dot", "."},
          {"dot dot", ".."},
          {"slash", "/"},
          {"empty", ""},
          {"a path", "../../etc/passwd"},
          {"10 kB", std::string(10240, 'a')},
          {"a NUL", std::string("pod\0id", 6)},
          {"a newline", "pod\nid"},
          {"a space", "pod id"},
          {"not ASCII", "caf\xc3\xa9"}};
}

template <typename Request>
Request with_id(const std::string& id) {
  Request request;
  request.set_id(id);
  if constexpr (std::is_same_v<Request, task::ExecProcessRequest>) {
    request.set_exec_id("some-exec");
  }
  return request;
}

template <typename Request>
Request with_exec(const std::string& exec) {
  Request request;
  request.set_id("some-container");
  request.set_exec_id(exec);
  return request;
}

struct TaskCall {
  const char* method;
  std::function<TtrpcProbe::Reply(TtrpcProbe&, const std::string&)> send;
};

template <typename Request>
TaskCall call_with_id(const char* method) {
  return {method, [method](TtrpcProbe& probe, const std::string& id) {
            return probe.call(method, with_id<Request>(id));
          }};
}

template <typename Request>
TaskCall call_with_exec(const char* method) {
  return {method, [method](TtrpcProbe& probe, const std::string& exec) {
            return probe.call(method, with_exec<Request>(exec));
          }};
}

std::vector<TaskCall> calls_with_id() {
  return {call_with_id<task::CreateTaskRequest>("Create"),
          call_with_id<task::StartRequest>("Start"),
          call_with_id<task::StateRequest>("State"),
          call_with_id<task::WaitRequest>("Wait"),
          call_with_id<task::KillRequest>("Kill"),
          call_with_id<task::DeleteRequest>("Delete"),
          call_with_id<task::ConnectRequest>("Connect"),
          call_with_id<task::PidsRequest>("Pids"),
          call_with_id<task::PauseRequest>("Pause"),
          call_with_id<task::ResumeRequest>("Resume"),
          call_with_id<task::StatsRequest>("Stats"),
          call_with_id<task::UpdateTaskRequest>("Update"),
          call_with_id<task::CheckpointTaskRequest>("Checkpoint"),
          call_with_id<task::ExecProcessRequest>("Exec"),
          call_with_id<task::ResizePtyRequest>("ResizePty"),
          call_with_id<task::CloseIORequest>("CloseIO")};
}

std::vector<TaskCall> calls_with_exec() {
  return {call_with_exec<task::StartRequest>("Start"),
          call_with_exec<task::StateRequest>("State"),
          call_with_exec<task::WaitRequest>("Wait"),
          call_with_exec<task::KillRequest>("Kill"),
          call_with_exec<task::DeleteRequest>("Delete"),
          call_with_exec<task::ExecProcessRequest>("Exec"),
          call_with_exec<task::ResizePtyRequest>("ResizePty"),
          call_with_exec<task::CloseIORequest>("CloseIO")};
}

struct ControllerCall {
  const char* method;
  std::function<std::pair<int, std::string>(ControllerClient&, const std::string&)> send;
};

template <typename Answer>
std::pair<int, std::string> outcome(const Answer& answer) {
  return {answer.code, answer.message};
}

std::vector<ControllerCall> controller_calls() {
  using Client = ControllerClient;
  using Id = const std::string&;
  return {{"Create", [](Client& c, Id id) { return outcome(c.create(pod_request(id))); }},
          {"Start", [](Client& c, Id id) { return outcome(c.start(id)); }},
          {"Platform", [](Client& c, Id id) { return outcome(c.platform(id)); }},
          {"Status", [](Client& c, Id id) { return outcome(c.status(id)); }},
          {"Update", [](Client& c, Id id) { return outcome(c.update(id)); }},
          {"Wait", [](Client& c, Id id) { return outcome(c.wait(id)); }},
          {"Stop", [](Client& c, Id id) { return outcome(c.stop(id)); }},
          {"Shutdown", [](Client& c, Id id) { return outcome(c.shutdown(id)); }}};
}

// A daemon with one pod that must come through everything unharmed.

}  // namespace

TEST_CASE("hostile ids are refused by every Task method with the field's name",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    for (const HostileId& hostile : hostile_ids()) {
      for (const TaskCall& call : calls_with_id()) {
        INFO(call.method << " with the id " << hostile.name);
        const TtrpcProbe::Reply reply = call.send(probe, hostile.id);
        CHECK(reply.code == kInvalidArgument);
        CHECK_THAT(reply.message, ContainsSubstring("id"));
        CHECK(reply.message.size() < 1024);
      }
    }
  }
  stage.check_unharmed(before);
}

TEST_CASE("hostile exec ids are refused by the Task methods that take one",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    for (const HostileId& hostile : hostile_ids()) {
      if (hostile.id.empty()) {
        // An empty exec id names the container's init process.
        continue;
      }
      for (const TaskCall& call : calls_with_exec()) {
        INFO(call.method << " with the exec id " << hostile.name);
        const TtrpcProbe::Reply reply = call.send(probe, hostile.id);
        REQUIRE(reply.code == kInvalidArgument);
        CHECK_THAT(reply.message, ContainsSubstring("exec_id"));
      }
    }
  }
  stage.check_unharmed(before);
}

TEST_CASE("hostile ids are refused by every Controller method with the field's name",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  for (const HostileId& hostile : hostile_ids()) {
    for (const ControllerCall& call : controller_calls()) {
      INFO(call.method << " with the sandbox_id " << hostile.name);
      const auto [code, message] = call.send(*stage.controller, hostile.id);
      CHECK(code == kInvalidArgument);
      CHECK_THAT(message, ContainsSubstring("sandbox_id"));
      CHECK(message.size() < 1024);
    }
  }
  stage.check_unharmed(before);
}

TEST_CASE("Controller calls about unknown sandboxes and in a wrong order get clear answers",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  ControllerClient& controller = *stage.controller;
  const Census before = Census::take_settled(stage.daemon.scope());

  SECTION("unknown sandbox") {
    CHECK(controller.start("nobody").code == kNotFound);
    CHECK(controller.status("nobody").code == kNotFound);
    // Anything but NOT_FOUND would be retried or turn the pod NOTREADY (T16).
    const auto waited = controller.wait("nobody");
    CHECK(waited.code == kNotFound);
    CHECK_THAT(waited.message, ContainsSubstring("nobody"));
    // What is to be gone and is not there is success; CRI takes either answer.
    const int stopped = controller.stop("nobody").code;
    CHECK((stopped == kOk || stopped == kNotFound));
    const int shut = controller.shutdown("nobody").code;
    CHECK((shut == kOk || shut == kNotFound));
  }
  SECTION("everything twice") {
    REQUIRE(controller.create(pod_request("twice")).code == kOk);
    CHECK(controller.create(pod_request("twice")).code == kAlreadyExists);
    REQUIRE(controller.start("twice").code == kOk);
    const int again = controller.start("twice").code;
    CHECK((again == kOk || again == kAlreadyExists || again == kFailedPrecondition));
    CHECK(controller.status("twice").response.state() == "SANDBOX_READY");
    CHECK(controller.stop("twice").code == kOk);
    CHECK(controller.stop("twice").code == kOk);
    CHECK(controller.status("twice").response.state() == "SANDBOX_NOTREADY");
    CHECK(controller.wait("twice").code == kOk);
    CHECK(controller.wait("twice").code == kOk);
    CHECK(controller.shutdown("twice").code == kOk);
    const int shut = controller.shutdown("twice").code;
    CHECK((shut == kOk || shut == kNotFound));
    CHECK(controller.status("twice").code == kNotFound);
  }
  SECTION("Start after Stop") {
    REQUIRE(controller.create(pod_request("late")).code == kOk);
    REQUIRE(controller.start("late").code == kOk);
    REQUIRE(controller.stop("late").code == kOk);
    const auto answer = controller.start("late");
    CHECK(answer.code == kFailedPrecondition);
    CHECK_THAT(answer.message, ContainsSubstring("late"));
    CHECK(controller.shutdown("late").code == kOk);
  }
  SECTION("Stop and Shutdown before Start") {
    REQUIRE(controller.create(pod_request("early")).code == kOk);
    CHECK(controller.stop("early").code == kOk);
    CHECK(controller.shutdown("early").code == kOk);
    CHECK(controller.status("early").code == kNotFound);
  }
  SECTION("Shutdown without Stop") {
    REQUIRE(controller.create(pod_request("abrupt")).code == kOk);
    REQUIRE(controller.start("abrupt").code == kOk);
    CHECK(controller.shutdown("abrupt").code == kOk);
    CHECK(controller.status("abrupt").code == kNotFound);
  }
  SECTION("Metrics and Update") {
    CHECK(controller.metrics("witness").response.metrics().id() == "witness");
    CHECK(controller.metrics("nobody").code == kNotFound);
    CHECK(controller.update("witness").code == kOk);
  }
  stage.check_unharmed(before);
}

TEST_CASE(
    "T1 T2: Start and Status tell the task socket's address and version 3, Platform this machine",
    "[root][e2e][hostile]") {
  WitnessStage stage;
  ControllerClient& controller = *stage.controller;
  REQUIRE(controller.create(pod_request("asked")).code == kOk);
  const std::string address = "ttrpc+unix://" + stage.daemon.task_socket().native();
  const auto started = controller.start("asked");
  REQUIRE(started.code == kOk);
  CHECK(started.response.sandbox_id() == "asked");
  CHECK(started.response.address() == address);
  CHECK(started.response.version() == 3);
  for (const bool verbose : {false, true}) {
    const auto status = controller.status("asked", verbose);
    REQUIRE(status.code == kOk);
    CHECK(status.response.sandbox_id() == "asked");
    CHECK(status.response.address() == address);
    CHECK(status.response.version() == 3);
  }
  const auto platform = controller.platform("asked");
  REQUIRE(platform.code == kOk);
  CHECK(platform.response.platform().os() == "linux");
#if defined(__x86_64__)
  CHECK(platform.response.platform().architecture() == "amd64");
#elif defined(__aarch64__)
  CHECK(platform.response.platform().architecture() == "arm64");
#else
  CHECK_FALSE(platform.response.platform().architecture().empty());
#endif
  CHECK(controller.platform("nobody").code == kNotFound);
}

TEST_CASE("text that is not UTF-8 is refused, and the log has no line of libprotobuf's own",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  const std::string id = "\xff\xfe";
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    // Field 1, two bytes: the id of every request of the Task service.
    const std::string payload = "\x0a\x02" + id;
    for (const TaskCall& call : calls_with_id()) {
      INFO(call.method);
      REQUIRE(probe.send(TtrpcProbe::request(
          probe.next_stream(), std::string(TtrpcProbe::kTaskService), call.method, payload)));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK(reply->code == kInvalidArgument);
    }
  }
  {
    // Of our own client, which is as surprised as the server.
    const google::protobuf::LogSilencer silence;
    for (const ControllerCall& call : controller_calls()) {
      INFO(call.method);
      CHECK(call.send(*stage.controller, id).first != kOk);
    }
  }
  CHECK_THAT(stage.daemon.output(), !ContainsSubstring("[libprotobuf"));
  CHECK_THAT(stage.daemon.output(), ContainsSubstring("protobuf: "));
  stage.check_unharmed(before);
}

TEST_CASE("Controller.Create with hostile content is refused and leaves nothing",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  auto request = pod_request("content");
  SECTION("options are no PodSandboxConfig") {
    request.mutable_options()->set_value("\xff\xff\xff\xff not a message");
  }
  SECTION("options are missing") {
    request.clear_options();
  }
  SECTION("options are of another type") {
    request.mutable_options()->set_type_url("containerd.runc.v1.Options");
  }
  const auto answer = stage.controller->create(request);
  CHECK(answer.code == kInvalidArgument);
  CHECK_THAT(answer.message, ContainsSubstring("options"));
  CHECK(stage.controller->status("content").code == kNotFound);
  stage.check_unharmed(before);
}

TEST_CASE("T10: Start with a netns that is none is refused and leaves nothing",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  auto request = pod_request("netns");
  request.set_netns_path(stage.daemon.config().native());
  ::runtime::v1::PodSandboxConfig config;
  config.mutable_linux()->mutable_security_context()->mutable_namespace_options()->set_network(
      ::runtime::v1::POD);
  config.mutable_linux()->set_cgroup_parent(CgroupParent::path());
  request.mutable_options()->set_value(config.SerializeAsString());
  const auto created = stage.controller->create(request);
  const auto started = stage.controller->start("netns");
  INFO(created.message << " / " << started.message);
  CHECK((created.code != kOk || started.code != kOk));
  CHECK_THAT(created.code != kOk ? created.message : started.message,
             ContainsSubstring(stage.daemon.config().native()));
  stage.controller->shutdown("netns");
  stage.check_unharmed(before);
}

TEST_CASE("Task calls about unknown containers get NOT_FOUND", "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    for (const TaskCall& call : calls_with_id()) {
      if (std::string_view(call.method) == "Create") {
        continue;
      }
      INFO(call.method);
      const TtrpcProbe::Reply reply = call.send(probe, "nobody");
      CHECK(reply.code == kNotFound);
      CHECK_THAT(reply.message, ContainsSubstring("nobody"));
    }
    // CRI sends it when its own clean-up failed; it must never end a pod.
    CHECK(probe.call("Shutdown", with_id<task::ShutdownRequest>("nobody")).code == kOk);
  }
  stage.check_unharmed(before);
}

TEST_CASE("Task.Create with hostile content is refused and leaves nothing",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  auto request = task_request(stage.daemon, "witness", "content", {"true"});
  const std::filesystem::path bundle = request.bundle();
  std::vector<int> expected = {kInvalidArgument};
  std::string named;
  SECTION("a sandbox that does not exist") {
    write_whole(bundle / "sandbox", "nobody");
    expected = {kNotFound};
    named = "nobody";
  }
  SECTION("a sandbox whose name is a path") {
    write_whole(bundle / "sandbox", "../witness");
    named = "sandbox";
  }
  SECTION("no sandbox file in the bundle") {
    std::filesystem::remove(bundle / "sandbox");
    expected = {kInvalidArgument, kNotFound, kFailedPrecondition};
    named = "sandbox";
  }
  SECTION("no bundle") {
    request.set_bundle((bundle / "missing").native());
    expected = {kInvalidArgument, kNotFound};
    named = "missing";
  }
  SECTION("a relative bundle") {
    request.set_bundle("bundles/content");
    named = "bundle";
  }
  SECTION("config.json is cut short") {
    const std::string whole = read_whole(bundle / "config.json");
    write_whole(bundle / "config.json", whole.substr(0, whole.size() / 2));
    named = "config.json";
  }
  SECTION("config.json is an array") {
    write_whole(bundle / "config.json", "[]");
    named = "config.json";
  }
  SECTION("config.json nests 100,000 deep") {
    write_whole(bundle / "config.json", std::string(100000, '['));
    expected = {kInvalidArgument, kResourceExhausted};
    named = "config.json";
  }
  SECTION("a terminal that config.json does not have") {
    request.set_terminal(true);
    named = "terminal";
  }
  SECTION("a standard input that is not there") {
    request.set_stdin((bundle / "stdin").native());
    expected = {kNotFound};
    named = "stdin";
  }
  SECTION("a standard input that is a file") {
    request.set_stdin((bundle / "config.json").native());
    named = "is not a FIFO";
  }
  SECTION("a rootfs mount of an unknown type") {
    request.mutable_rootfs(0)->set_type("no-such-fs");
    // With the option that it has, mount(2) would look at no type.
    request.mutable_rootfs(0)->clear_options();
    expected = {kInvalidArgument, kNotFound, kFailedPrecondition, kInternal};
    named = "no-such-fs";
  }
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    const TtrpcProbe::Reply reply = probe.call("Create", request);
    INFO(reply.code << " " << reply.message);
    CHECK(std::find(expected.begin(), expected.end(), reply.code) != expected.end());
    CHECK_THAT(reply.message, ContainsSubstring(named));
    CHECK(probe.call("State", with_id<task::StateRequest>("content")).code == kNotFound);
  }
  stage.check_unharmed(before);
}

TEST_CASE("Task calls in a wrong order get clear answers", "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "order", {"sleep", "1000"});
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    const TtrpcProbe::Reply created = probe.call("Create", request);
    INFO(created.message);
    REQUIRE(created.code == kOk);
    CHECK(probe.call("Create", request).code == kAlreadyExists);
    REQUIRE(probe.call("Start", with_id<task::StartRequest>("order")).code == kOk);
    const auto again = probe.call("Start", with_id<task::StartRequest>("order"));
    CHECK(again.code == kFailedPrecondition);
    CHECK_THAT(again.message, ContainsSubstring("order"));
    const auto early = probe.call("Delete", with_id<task::DeleteRequest>("order"));
    CHECK(early.code == kFailedPrecondition);
    CHECK_THAT(early.message, ContainsSubstring("order"));

    auto kill = with_id<task::KillRequest>("order");
    kill.set_signal(4711);
    CHECK(probe.call("Kill", kill).code == kInvalidArgument);
    kill.set_signal(9);
    CHECK(probe.call("Kill", kill).code == kOk);
    const auto waited = probe.call("Wait", with_id<task::WaitRequest>("order"));
    REQUIRE(waited.code == kOk);
    task::WaitResponse exit;
    REQUIRE(exit.ParseFromString(waited.payload));
    CHECK(exit.exit_status() == 137);
    CHECK(probe.call("Kill", kill).code == kNotFound);
    CHECK(probe.call("Start", with_id<task::StartRequest>("order")).code == kFailedPrecondition);

    REQUIRE(probe.call("Delete", with_id<task::DeleteRequest>("order")).code == kOk);
    // From the tombstone: containerd repeats a Delete whose answer it has lost.
    const auto twice = probe.call("Delete", with_id<task::DeleteRequest>("order"));
    REQUIRE(twice.code == kOk);
    task::DeleteResponse tombstone;
    REQUIRE(tombstone.ParseFromString(twice.payload));
    CHECK(tombstone.exit_status() == 137);
    CHECK(tombstone.has_exited_at());
    CHECK(probe.call("State", with_id<task::StateRequest>("order")).code == kNotFound);
  }
  stage.check_unharmed(before);
}

TEST_CASE("Start and Delete of a container that was created and never started",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "unused", {"sleep", "1000"});
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    const TtrpcProbe::Reply created = probe.call("Create", request);
    INFO(created.message);
    REQUIRE(created.code == kOk);
    SECTION("Delete at once") {
      const auto reply = probe.call("Delete", with_id<task::DeleteRequest>("unused"));
      INFO(reply.message);
      CHECK(reply.code == kOk);
    }
    SECTION("Kill, Start, Delete") {
      auto kill = with_id<task::KillRequest>("unused");
      kill.set_signal(9);
      CHECK(probe.call("Kill", kill).code == kOk);
      REQUIRE(probe.call("Wait", with_id<task::WaitRequest>("unused")).code == kOk);
      CHECK(probe.call("Start", with_id<task::StartRequest>("unused")).code == kFailedPrecondition);
      CHECK(probe.call("Delete", with_id<task::DeleteRequest>("unused")).code == kOk);
    }
  }
  stage.check_unharmed(before);
}

}  // namespace kuasar::test
