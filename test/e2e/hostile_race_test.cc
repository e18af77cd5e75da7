#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "e2e/hostile_stage.h"
#include "support/census.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"

// The same call many times at once, and calls that undo one another at once.

namespace kuasar::test {
namespace {

namespace task = containerd::task::v3;

constexpr int kOk = 0;
constexpr int kNotFound = 5;
constexpr int kAlreadyExists = 6;
constexpr int kFailedPrecondition = 9;
constexpr std::size_t kCallers = 16;

// The codes that `call` returned to kCallers threads, sorted.
std::vector<int> at_once(const std::function<int(std::size_t)>& call) {
  std::vector<int> codes(kCallers, -1);
  std::vector<std::jthread> callers;
  for (std::size_t i = 0; i < kCallers; ++i) {
    callers.emplace_back([&codes, &call, i] { codes[i] = call(i); });
  }
  for (std::jthread& caller : callers) {
    caller.join();
  }
  std::sort(codes.begin(), codes.end());
  return codes;
}

std::size_t count(const std::vector<int>& codes, int code) {
  return static_cast<std::size_t>(std::count(codes.begin(), codes.end(), code));
}

// One request on each of several connections, all sent before the first reply is read.
template <typename Request>
std::vector<int> burst(const LoneDaemon& daemon, const std::string& method,
                       const Request& request) {
  std::vector<std::unique_ptr<TtrpcProbe>> probes;
  for (std::size_t i = 0; i < kCallers; ++i) {
    probes.push_back(std::make_unique<TtrpcProbe>(daemon.task_socket()));
  }
  for (const auto& probe : probes) {
    probe->send(TtrpcProbe::request(1, method, request));
  }
  std::vector<int> codes;
  for (const auto& probe : probes) {
    const auto reply = probe->read_reply();
    codes.push_back(reply ? reply->code : -1);
  }
  std::sort(codes.begin(), codes.end());
  return codes;
}

template <typename Request>
Request with_id(const std::string& id) {
  Request request;
  request.set_id(id);
  return request;
}

}  // namespace

TEST_CASE("one of many equal Controller calls at once wins", "[root][e2e][hostile]") {
  WitnessStage stage;
  ControllerClient& controller = *stage.controller;
  const Census before = Census::take_settled(stage.daemon.scope());
  const auto created =
      at_once([&](std::size_t) { return controller.create(pod_request("race")).code; });
  CHECK(count(created, kOk) == 1);
  CHECK(count(created, kAlreadyExists) == kCallers - 1);
  const auto started = at_once([&](std::size_t) { return controller.start("race").code; });
  CHECK(count(started, kOk) >= 1);
  CHECK(count(started, kOk) + count(started, kFailedPrecondition) +
            count(started, kAlreadyExists) ==
        kCallers);
  CHECK(controller.status("race").response.state() == "SANDBOX_READY");
  CHECK(count(at_once([&](std::size_t) { return controller.stop("race").code; }), kOk) == kCallers);
  CHECK(controller.status("race").response.state() == "SANDBOX_NOTREADY");
  const auto shut = at_once([&](std::size_t) { return controller.shutdown("race").code; });
  CHECK(count(shut, kOk) + count(shut, kNotFound) == kCallers);
  CHECK(controller.status("race").code == kNotFound);
  stage.check_unharmed(before);
}

TEST_CASE("Create, Start, Stop and Shutdown of one id against one another",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  ControllerClient& controller = *stage.controller;
  const Census before = Census::take_settled(stage.daemon.scope());
  const std::vector<int> allowed = {kOk, kNotFound, kAlreadyExists, kFailedPrecondition};
  for (int round = 0; round < 10; ++round) {
    const auto codes = at_once([&](std::size_t i) {
      switch (i % 4) {
        case 0: return controller.create(pod_request("mess")).code;
        case 1: return controller.start("mess").code;
        case 2: return controller.stop("mess").code;
        default: return controller.shutdown("mess").code;
      }
    });
    CHECK(std::all_of(codes.begin(), codes.end(), [&allowed](int code) {
      return std::find(allowed.begin(), allowed.end(), code) != allowed.end();
    }));
  }
  const int shut = controller.shutdown("mess").code;
  CHECK((shut == kOk || shut == kNotFound));
  stage.check_unharmed(before);
}

TEST_CASE("one of many equal Task calls at once wins", "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "race", {"sleep", "1000"});
  const Census before = Census::take_settled(stage.daemon.scope());
  const auto created = burst(stage.daemon, "Create", request);
  CHECK(count(created, kOk) == 1);
  CHECK(count(created, kAlreadyExists) == kCallers - 1);
  const auto started = burst(stage.daemon, "Start", with_id<task::StartRequest>("race"));
  CHECK(count(started, kOk) == 1);
  CHECK(count(started, kFailedPrecondition) == kCallers - 1);
  auto kill = with_id<task::KillRequest>("race");
  kill.set_signal(9);
  const auto killed = burst(stage.daemon, "Kill", kill);
  CHECK(count(killed, kOk) >= 1);
  CHECK(count(killed, kOk) + count(killed, kNotFound) == kCallers);
  CHECK(count(burst(stage.daemon, "Wait", with_id<task::WaitRequest>("race")), kOk) == kCallers);
  const auto removed = burst(stage.daemon, "Delete", with_id<task::DeleteRequest>("race"));
  CHECK(count(removed, kOk) >= 1);
  CHECK(count(removed, kOk) + count(removed, kNotFound) + count(removed, kFailedPrecondition) ==
        kCallers);
  stage.check_unharmed(before);
}

TEST_CASE("Controller.Shutdown while containers are created", "[root][e2e][hostile]") {
  WitnessStage stage;
  ControllerClient& controller = *stage.controller;
  std::vector<task::CreateTaskRequest> requests;
  for (std::size_t i = 0; i < kCallers; ++i) {
    requests.push_back(
        task_request(stage.daemon, "doomed", "c" + std::to_string(i), {"sleep", "1000"}));
  }
  const Census before = Census::take_settled(stage.daemon.scope());
  REQUIRE(controller.create(pod_request("doomed")).code == kOk);
  REQUIRE(controller.start("doomed").code == kOk);
  {
    std::vector<std::unique_ptr<TtrpcProbe>> probes;
    for (const task::CreateTaskRequest& request : requests) {
      probes.push_back(std::make_unique<TtrpcProbe>(stage.daemon.task_socket()));
      probes.back()->send(TtrpcProbe::request(1, "Create", request));
    }
    const auto shut = controller.shutdown("doomed");
    INFO(shut.message);
    CHECK(shut.code == kOk);
    for (const auto& probe : probes) {
      const auto reply = probe->read_reply(std::chrono::seconds(30));
      REQUIRE(reply);
      INFO(reply->message);
      CHECK((reply->code == kOk || reply->code == kNotFound || reply->code == kFailedPrecondition ||
             reply->code == 14));
    }
  }
  CHECK(controller.status("doomed").code == kNotFound);
  stage.check_unharmed(before);
}

TEST_CASE("500 idle connections leave the others their service", "[root][e2e][hostile]") {
  WitnessStage stage;
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    std::vector<std::unique_ptr<TtrpcProbe>> idle;
    for (int i = 0; i < 500; ++i) {
      idle.push_back(std::make_unique<TtrpcProbe>(stage.daemon.task_socket()));
    }
    TtrpcProbe probe(stage.daemon.task_socket());
    CHECK(probe.call("State", with_id<task::StateRequest>("nobody")).code == kNotFound);
    CHECK(idle.front()->call("State", with_id<task::StateRequest>("nobody")).code == kNotFound);
    CHECK(idle.back()->call("State", with_id<task::StateRequest>("nobody")).code == kNotFound);
  }
  stage.check_unharmed(before);
}

}  // namespace kuasar::test
