#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "e2e/hostile_daemon.h"
#include "support/census.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"

// Bytes on the task socket that are no ttrpc, or ttrpc in excess; meanwhile others are served.

namespace kuasar::test {
namespace {

namespace task = containerd::task::v3;
using Catch::Matchers::ContainsSubstring;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kOk = 0;
constexpr int kInvalidArgument = 3;
constexpr int kNotFound = 5;
constexpr int kResourceExhausted = 8;
constexpr int kUnimplemented = 12;

// ttrpc 1.2: the most data that a frame may carry.
constexpr std::uint32_t kMaxData = 4U << 20;
// The most unanswered requests of one connection.
constexpr int kMaxPending = 4096;

task::StateRequest state_of_nobody() {
  task::StateRequest request;
  request.set_id("nobody");
  return request;
}

struct Stage {
  CgroupParent cgroup;
  LoneDaemon daemon;
  Census before;

  Stage() {
    daemon.start();
    { check_served_promptly(); }
    before = Census::take_settled(daemon.scope());
  }

  // Another client gets its answer, within a time that a blocked loop would not keep.
  void check_served_promptly() const {
    const auto start = std::chrono::steady_clock::now();
    TtrpcProbe other(daemon.task_socket());
    const TtrpcProbe::Reply reply = other.call("State", state_of_nobody());
    const auto took = std::chrono::steady_clock::now() - start;
    CHECK(reply.code == kNotFound);
    CHECK(took < seconds(1));
  }

  void check_unharmed() const {
    REQUIRE(daemon.alive());
    check_served_promptly();
    const auto left = left_behind(before, daemon);
    INFO("left behind:" << listed(left));
    CHECK(left.empty());
  }
};

// A fixed pseudo-random stream: a failure can be repeated.
std::string noise(std::size_t size, std::uint32_t seed) {
  std::string bytes;
  for (std::size_t i = 0; i < size; ++i) {
    seed = seed * 1664525U + 1013904223U;
    bytes.push_back(static_cast<char>(seed >> 24));
  }
  return bytes;
}

}  // namespace

TEST_CASE("garbage on the task socket harms nobody", "[root][e2e][hostile]") {
  const Stage stage;
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    TtrpcProbe probe(stage.daemon.task_socket());
    probe.send_some(noise(64 * 1024, seed));
    probe.shut_writing();
    CHECK(probe.closed_within(seconds(5)));
  }
  stage.check_unharmed();
}

TEST_CASE("HTTP on the task socket harms nobody", "[root][e2e][hostile]") {
  const Stage stage;
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    probe.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    probe.shut_writing();
    CHECK(probe.closed_within(seconds(5)));
  }
  stage.check_unharmed();
}

TEST_CASE("half a frame holds up nobody", "[root][e2e][hostile]") {
  const Stage stage;
  const std::string whole = TtrpcProbe::request(1, "State", state_of_nobody());
  SECTION("and a peer that stays is answered when the rest comes") {
    TtrpcProbe half_header(stage.daemon.task_socket());
    TtrpcProbe half_body(stage.daemon.task_socket());
    half_header.send(whole.substr(0, 5));
    half_body.send(whole.substr(0, 15));
    stage.check_served_promptly();
    half_header.send(whole.substr(5));
    half_body.send(whole.substr(15));
    for (TtrpcProbe* probe : {&half_header, &half_body}) {
      const auto reply = probe->read_reply();
      REQUIRE(reply);
      CHECK(reply->code == kNotFound);
      CHECK(reply->stream == 1);
    }
  }
  SECTION("and a peer that sends byte by byte is answered") {
    TtrpcProbe slow(stage.daemon.task_socket());
    for (const char byte : whole) {
      slow.send(std::string(1, byte));
    }
    const auto reply = slow.read_reply();
    REQUIRE(reply);
    CHECK(reply->code == kNotFound);
  }
  SECTION("and a peer that goes is forgotten") {
    for (const std::size_t size : {1, 5, 9, 10, 11, 15}) {
      TtrpcProbe probe(stage.daemon.task_socket());
      probe.send(whole.substr(0, size));
    }
  }
  SECTION("and a promise of the largest frame takes no memory") {
    const MemoryWatch memory(stage.daemon.pid());
    std::vector<std::unique_ptr<TtrpcProbe>> probes;
    for (int i = 0; i < 50; ++i) {
      probes.push_back(std::make_unique<TtrpcProbe>(stage.daemon.task_socket()));
      probes.back()->send(TtrpcProbe::header(kMaxData, 1, TtrpcProbe::kRequest));
    }
    stage.check_served_promptly();
    CHECK(memory.growth_mib() < 50);
  }
  stage.check_unharmed();
}

TEST_CASE("an oversized frame is answered with RESOURCE_EXHAUSTED and skipped",
          "[root][e2e][hostile]") {
  const Stage stage;
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    REQUIRE(probe.send(TtrpcProbe::frame(1, TtrpcProbe::kRequest, std::string(kMaxData + 1, 'x'))));
    const auto refused = probe.read_reply();
    REQUIRE(refused);
    CHECK(refused->stream == 1);
    CHECK(refused->code == kResourceExhausted);
    REQUIRE(probe.send(TtrpcProbe::request(3, "State", state_of_nobody())));
    const auto reply = probe.read_reply();
    REQUIRE(reply);
    CHECK(reply->stream == 3);
    CHECK(reply->code == kNotFound);
  }
  stage.check_unharmed();
}

TEST_CASE("a promise of 4 GiB never costs memory or the others' service", "[root][e2e][hostile]") {
  const Stage stage;
  const MemoryWatch memory(stage.daemon.pid());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    probe.send(TtrpcProbe::header(0xffffffff, 1, TtrpcProbe::kRequest));
    const std::string chunk = noise(1 << 20, 7);
    for (int i = 0; i < 64; ++i) {
      if (!probe.send(chunk)) {
        break;
      }
    }
    stage.check_served_promptly();
    CHECK(memory.growth_mib() < 32);
  }
  stage.check_unharmed();
}

TEST_CASE("frames that break ttrpc's rules get an answer or are ignored", "[root][e2e][hostile]") {
  const Stage stage;
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    std::uint32_t next = 1;
    int expected = kInvalidArgument;
    SECTION("an even stream") {
      probe.send(TtrpcProbe::request(2, "State", state_of_nobody()));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK(reply->stream == 2);
      CHECK(reply->code == expected);
      next = 3;
    }
    SECTION("stream 0") {
      probe.send(TtrpcProbe::request(0, "State", state_of_nobody()));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK(reply->code == expected);
    }
    SECTION("a stream replayed, and one lower") {
      probe.send(TtrpcProbe::request(5, "State", state_of_nobody()));
      REQUIRE(probe.read_reply());
      for (const std::uint32_t stream : {5U, 3U}) {
        probe.send(TtrpcProbe::request(stream, "State", state_of_nobody()));
        const auto reply = probe.read_reply();
        REQUIRE(reply);
        CHECK(reply->stream == stream);
        CHECK(reply->code == expected);
      }
      next = 7;
    }
    SECTION("a request that is no message") {
      probe.send(TtrpcProbe::frame(1, TtrpcProbe::kRequest, "\xff\xff\xff\xff\xff"));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK(reply->code == expected);
      next = 3;
    }
    SECTION("an empty request") {
      probe.send(TtrpcProbe::frame(1, TtrpcProbe::kRequest, ""));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK((reply->code == kInvalidArgument || reply->code == kUnimplemented));
      next = 3;
    }
    SECTION("a payload that is no message") {
      probe.send(TtrpcProbe::request(1, std::string(TtrpcProbe::kTaskService), "State",
                                     "\xff\xff\xff\xff"));
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK(reply->code == expected);
      next = 3;
    }
    SECTION("an unknown method and an unknown service") {
      probe.send(TtrpcProbe::request(1, std::string(TtrpcProbe::kTaskService), "Dance", ""));
      const auto method = probe.read_reply();
      REQUIRE(method);
      CHECK(method->code == kUnimplemented);
      CHECK_THAT(method->message, ContainsSubstring("Dance"));
      probe.send(TtrpcProbe::request(3, "containerd.task.v2.Task", "State", ""));
      const auto service = probe.read_reply();
      REQUIRE(service);
      CHECK(service->code == kUnimplemented);
      CHECK_THAT(service->message, ContainsSubstring("containerd.task.v2.Task"));
      next = 5;
    }
    SECTION("unknown types, a response, and data for no stream") {
      probe.send(TtrpcProbe::frame(1, 0, "x"));
      probe.send(TtrpcProbe::frame(1, 99, "x"));
      probe.send(TtrpcProbe::frame(1, TtrpcProbe::kResponse, "x"));
      probe.send(TtrpcProbe::frame(1, TtrpcProbe::kData, "x"));
      probe.send(TtrpcProbe::frame(77, TtrpcProbe::kData, "", 5));
    }
    // The connection lives on.
    probe.send(TtrpcProbe::request(next, "State", state_of_nobody()));
    const auto reply = probe.read_reply();
    REQUIRE(reply);
    CHECK(reply->stream == next);
    CHECK(reply->code == kNotFound);
  }
  stage.check_unharmed();
}

TEST_CASE("a client that floods and never reads harms nobody else", "[root][e2e][hostile]") {
  const Stage stage;
  const MemoryWatch memory(stage.daemon.pid());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    std::size_t sent = 0;
    std::uint32_t stream = 1;
    const auto end = std::chrono::steady_clock::now() + seconds(3);
    while (std::chrono::steady_clock::now() < end && sent < (64U << 20)) {
      std::string batch;
      for (int i = 0; i < 200; ++i, stream += 2) {
        batch += TtrpcProbe::request(stream, "State", state_of_nobody());
      }
      const std::size_t taken = probe.send_some(batch);
      sent += taken;
      if (taken < batch.size()) {
        break;
      }
    }
    INFO("the daemon took " << sent << " bytes");
    stage.check_served_promptly();
    CHECK(memory.growth_mib() < 32);
  }
  stage.check_unharmed();
}

TEST_CASE("300 requests sent at once are all answered", "[root][e2e][hostile]") {
  const Stage stage;
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    std::string flood;
    for (std::uint32_t i = 0; i < 4140; ++i) {
      flood += TtrpcProbe::request(1 + 2 * i, "State", state_of_nobody());
    }
    REQUIRE(probe.send(flood));
    std::vector<std::uint32_t> streams;
    for (int i = 0; i < 4140; ++i) {
      const auto reply = probe.read_reply();
      REQUIRE(reply);
      CHECK((reply->code == kNotFound || reply->code == kResourceExhausted));
      streams.push_back(reply->stream);
    }
    std::sort(streams.begin(), streams.end());
    CHECK(std::adjacent_find(streams.begin(), streams.end()) == streams.end());
  }
  stage.check_unharmed();
}

TEST_CASE("more than 4096 unanswered Waits get RESOURCE_EXHAUSTED", "[root][e2e][hostile]") {
  Stage stage;
  ControllerClient controller(stage.daemon.listen());
  REQUIRE(controller.create(pod_request("waits")).code == kOk);
  REQUIRE(controller.start("waits").code == kOk);
  {
    TtrpcProbe other(stage.daemon.task_socket());
    const auto created =
        other.call("Create", task_request(stage.daemon, "waits", "sleeper", {"sleep", "1000"}));
    INFO(created.message);
    REQUIRE(created.code == kOk);
    task::StartRequest start;
    start.set_id("sleeper");
    REQUIRE(other.call("Start", start).code == kOk);

    task::WaitRequest wait;
    wait.set_id("sleeper");
    TtrpcProbe greedy(stage.daemon.task_socket());
    for (std::uint32_t i = 0; i < 4140; ++i) {
      REQUIRE(greedy.send(TtrpcProbe::request(1 + 2 * i, "Wait", wait)));
    }
    for (int i = 0; i < 4140 - kMaxPending; ++i) {
      const auto refused = greedy.read_reply();
      REQUIRE(refused);
      CHECK(refused->code == kResourceExhausted);
      CHECK(refused->stream > 2 * kMaxPending);
    }
    CHECK_FALSE(greedy.read_frame(milliseconds(200)));
    CHECK(greedy.end() == TtrpcProbe::End::kDeadline);
    stage.check_served_promptly();

    task::KillRequest kill;
    kill.set_id("sleeper");
    kill.set_signal(9);
    CHECK(other.call("Kill", kill).code == kOk);
    for (int i = 0; i < kMaxPending; ++i) {
      const auto reply = greedy.read_reply();
      REQUIRE(reply);
      task::WaitResponse exit;
      CHECK(reply->code == kOk);
      CHECK(exit.ParseFromString(reply->payload));
      CHECK(exit.exit_status() == 137);
    }
    // Answered requests make room again.
    REQUIRE(greedy.send(TtrpcProbe::request(2 * 4140 + 1, "Wait", wait)));
    const auto reply = greedy.read_reply();
    REQUIRE(reply);
    CHECK(reply->code == kOk);
    task::DeleteRequest remove;
    remove.set_id("sleeper");
    CHECK(other.call("Delete", remove).code == kOk);
  }
  CHECK(controller.shutdown("waits").code == kOk);
  CHECK(stage.daemon.alive());
  stage.check_served_promptly();
}

TEST_CASE("Waits of a client that goes are forgotten", "[root][e2e][hostile]") {
  Stage stage;
  ControllerClient controller(stage.daemon.listen());
  REQUIRE(controller.create(pod_request("gone")).code == kOk);
  REQUIRE(controller.start("gone").code == kOk);
  TtrpcProbe other(stage.daemon.task_socket());
  REQUIRE(
      other.call("Create", task_request(stage.daemon, "gone", "sleeper", {"sleep", "1000"})).code ==
      kOk);
  task::StartRequest start;
  start.set_id("sleeper");
  REQUIRE(other.call("Start", start).code == kOk);
  const Census running = Census::take_settled(stage.daemon.scope());
  task::WaitRequest wait;
  wait.set_id("sleeper");
  for (int i = 0; i < 20; ++i) {
    TtrpcProbe probe(stage.daemon.task_socket());
    for (std::uint32_t j = 0; j < 200; ++j) {
      REQUIRE(probe.send(TtrpcProbe::request(1 + 2 * j, "Wait", wait)));
    }
  }
  const auto left = Census::wait_equal(running, stage.daemon.scope());
  INFO("left behind:" << listed(left));
  CHECK(left.empty());
  task::KillRequest kill;
  kill.set_id("sleeper");
  kill.set_signal(9);
  CHECK(other.call("Kill", kill).code == kOk);
  CHECK(other.call("Wait", wait).code == kOk);
  task::DeleteRequest remove;
  remove.set_id("sleeper");
  CHECK(other.call("Delete", remove).code == kOk);
  CHECK(controller.shutdown("gone").code == kOk);
  CHECK(stage.daemon.alive());
}

TEST_CASE("garbage on the Controller's socket harms nobody", "[root][e2e][hostile]") {
  const Stage stage;
  ControllerClient controller(stage.daemon.listen());
  REQUIRE(controller.status("nobody").code == kNotFound);
  const Census before = Census::take_settled(stage.daemon.scope());
  for (std::uint32_t seed = 1; seed <= 10; ++seed) {
    TtrpcProbe probe(stage.daemon.listen());
    probe.send_some(noise(4096, seed));
    probe.shut_writing();
    CHECK(probe.closed_within(seconds(10)));
  }
  CHECK(controller.status("nobody").code == kNotFound);
  const auto left = left_behind(before, stage.daemon);
  INFO("left behind:" << listed(left));
  CHECK(left.empty());
}

TEST_CASE("SIGTERM keeps a connection that is half way through a frame for the next daemon",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  // Without a pod nothing would be kept.
  REQUIRE(ControllerClient(daemon.listen()).create(pod_request("witness")).code == kOk);
  TtrpcProbe probe(daemon.task_socket());
  const std::string request = TtrpcProbe::request(1, "State", state_of_nobody());
  probe.send(request.substr(0, 7));
  // Served before it ends: what was peeked at so far is in the socket still.
  CHECK(eventually([&] { return !std::filesystem::is_empty(daemon.dir() / "journal"); }));
  CHECK(daemon.stop().code == 0);
  CHECK(daemon.keeper() != 0);
  daemon.start();
  probe.send(request.substr(7));
  const auto reply = probe.read_reply();
  REQUIRE(reply);
  CHECK(reply->stream == 1);
  CHECK(reply->code == kNotFound);
}

}  // namespace kuasar::test
