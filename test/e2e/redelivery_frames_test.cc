#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "e2e/redelivery_bench.h"

// What is on its way through a task connection when the daemon dies, and calls whose container is
// given up meanwhile. Needs no failpoints, but where a call must be caught before its effect.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task = containerd::task::v3;
using Catch::Matchers::ContainsSubstring;
using std::chrono::seconds;

constexpr int kOk = 0;
constexpr int kNotFound = 5;
constexpr const char* kTorn = "died inside one of its frames";

Subject running_container(Bench& bench, TtrpcProbe& probe) {
  Subject subject = bench.new_container(false);
  bench.bring(subject, Stage::kRunning, probe);
  return subject;
}

void restart(Bench& bench) {
  bench.daemon().kill();
  bench.daemon().start();
}

// An exec that is never started, whose State is an answer of more than `size` bytes.
Subject exec_of_size(Bench& bench, Subject subject, std::size_t size, TtrpcProbe& probe) {
  bench.name_exec(subject, false);
  task::ExecProcessRequest request;
  REQUIRE(request.ParseFromString(Bench::exec_request(subject)));
  request.set_stdout(std::string(size, 'x'));
  payload_of(probe.call("Exec", request), "Exec");
  return subject;
}

void send(TtrpcProbe& probe, const char* method, const google::protobuf::MessageLite& message) {
  REQUIRE(probe.send(TtrpcProbe::request(probe.next_stream(), method, message)));
}

std::ptrdiff_t descriptors_of(pid_t pid) {
  const fs::directory_iterator all(fs::path("/proc") / std::to_string(pid) / "fd");
  return std::distance(all, fs::directory_iterator());
}

void finish(Bench& bench, Subject subject) {
  subject.exec.clear();
  bench.clean_up(subject, *bench.connect());
  CHECK(bench.leftovers() == "");
}

}  // namespace

TEST_CASE("redelivery: what is sent while no daemon is there is served by the next one",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  Subject subject = bench.new_container(false);
  std::unique_ptr<TtrpcProbe> probe;
  SECTION("the daemon is dead") {
    bench.daemon().kill();
    probe = bench.connect();
    send(*probe, "Create", subject.create);
  }
  SECTION("the connection is passed to a daemon that never reads it") {
    const pid_t keeper = bench.daemon().keeper();
    const auto before = descriptors_of(keeper);
    ::kill(bench.daemon().pid(), SIGSTOP);
    probe = bench.connect();
    send(*probe, "Create", subject.create);
    REQUIRE(eventually([&] { return descriptors_of(keeper) > before; }));
    bench.daemon().kill();
  }
  bench.daemon().start();
  const auto reply = probe->read_reply();
  REQUIRE(reply);
  INFO(reply->message);
  CHECK(reply->code == kOk);
  payload_of(probe->call("Start", request_for<task::StartRequest>(subject)), "Start");
  bench.await_log(subject, "ran");
  probe.reset();
  finish(bench, subject);
}

TEST_CASE("redelivery: half a request waits for its rest and the next daemon",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  const Subject subject = running_container(bench, *bench.connect());
  const std::string whole =
      TtrpcProbe::request(1, "State", request_for<task::StateRequest>(subject));
  for (const std::size_t cut : {std::size_t{5}, std::size_t{10}, whole.size() - 1}) {
    CAPTURE(cut);
    const auto caller = bench.connect();
    REQUIRE(caller->send(whole.substr(0, cut)));
    restart(bench);
    REQUIRE(caller->send(whole.substr(cut)));
    const auto reply = caller->read_reply();
    REQUIRE(reply);
    CHECK(reply->code == kOk);
  }
  finish(bench, subject);
}

TEST_CASE("redelivery: a death inside a request over 64 KiB closes its connection and no other",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  auto witness = bench.connect();
  auto caller = bench.connect();
  const Subject subject = running_container(bench, *caller);
  task::StateRequest request;
  request.set_id(std::string(200'000, 'x'));
  const std::string whole = TtrpcProbe::request(caller->next_stream(), "State", request);
  REQUIRE(caller->send(whole.substr(0, 100'000)));
  // It is read for good, a peek would leave it there.
  REQUIRE(eventually([&] { return caller->unread_by_peer() == 0; }));
  const std::size_t output = bench.daemon().output().size();
  restart(bench);
  CHECK(caller->closed_within(seconds(5)));
  CHECK_THAT(bench.daemon().output().substr(output), ContainsSubstring(kTorn));
  // Its bundle is there: not given up.
  CHECK(witness->call("State", request_for<task::StateRequest>(subject)).code == kOk);
  CHECK(bench.log(subject) == "ran; ");
  witness.reset();
  caller.reset();
  finish(bench, subject);
}

TEST_CASE("redelivery: a death inside an answer over 32 KiB closes its connection and no other",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  auto witness = bench.connect();
  auto caller = bench.connect();
  // More than the socket takes while nobody reads.
  const Subject subject =
      exec_of_size(bench, running_container(bench, *witness), 1'000'000, *witness);
  send(*caller, "State", request_for<task::StateRequest>(subject));
  REQUIRE(eventually([&] { return caller->unread() > (32 << 10); }));
  const std::size_t output = bench.daemon().output().size();
  restart(bench);
  CHECK(caller->closed_within(seconds(5)));
  CHECK_THAT(bench.daemon().output().substr(output), ContainsSubstring(kTorn));
  CHECK(witness->call("State", request_for<task::StateRequest>(subject)).code == kOk);
  CHECK(bench.log(subject) == "ran; ");
  witness.reset();
  caller.reset();
  finish(bench, subject);
}

TEST_CASE("redelivery: answers that wait for room in the connection outlive their daemon",
          "[root][e2e][hostile][redelivery]") {
  constexpr int kCalls = 60;
  Bench bench;
  auto witness = bench.connect();
  auto caller = bench.connect();
  const Subject subject = exec_of_size(bench, running_container(bench, *witness), 20'000, *witness);
  std::map<std::uint32_t, int> answers;
  for (int i = 0; i < kCalls; ++i) {
    const std::uint32_t stream = caller->next_stream();
    answers[stream] = 0;
    REQUIRE(caller->send(
        TtrpcProbe::request(stream, "State", request_for<task::StateRequest>(subject))));
  }
  // Everything is read, and what the socket has no room for is in the daemon's memory.
  REQUIRE(eventually([&] { return caller->unread_by_peer() == 0; }));
  CHECK(caller->unread() < kCalls * 20'000);
  restart(bench);
  while (const auto reply = caller->read_reply(seconds(2))) {
    CHECK(reply->code == kOk);
    CHECK(reply->payload.size() > 20'000);
    ++answers.at(reply->stream);
  }
  for (const auto& [stream, count] : answers) {
    CAPTURE(stream);
    // Twice is harmless: who has its answer waits for none.
    CHECK((count == 1 || count == 2));
  }
  witness.reset();
  caller.reset();
  finish(bench, subject);
}

TEST_CASE("redelivery: Delete gives the same status again, also to other daemons",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  auto probe = bench.connect();
  Subject subject = running_container(bench, *probe);
  std::string status;
  const auto remove = [&](const char* when) {
    INFO(when);
    const auto reply = probe->call("Delete", request_for<task::DeleteRequest>(subject));
    INFO(reply.message);
    CHECK(reply.code == kOk);
    if (status.empty()) status = reply.payload;
    CHECK(reply.payload == status);
    task::DeleteResponse response;
    REQUIRE(response.ParseFromString(reply.payload));
    CHECK(response.exit_status() == (subject.exec.empty() ? 7 : 9));
    CHECK(response.has_exited_at());
  };
  const auto everywhere = [&] {
    remove("at first");
    remove("again");
    restart(bench);
    remove("after kill -9");
    REQUIRE(bench.daemon().stop().code == 0);
    bench.daemon().start();
    remove("after SIGTERM");
  };
  const Subject init = subject;
  bench.name_exec(subject, false);
  bench.bring_exec(subject, Stage::kStopped, *probe);
  everywhere();

  subject = init;
  status.clear();
  bench.stop(subject, *probe);
  everywhere();
  Bench::remove_bundle(subject);
  probe.reset();
  CHECK(bench.leftovers() == "");
}

TEST_CASE("redelivery: a call whose bundle is gone is not run again",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  auto caller = bench.connect();
  Subject subject = bench.new_container(false);
  std::string method;
  std::string payload;
  std::string log;
  SECTION("Create") {
    method = "Create";
    payload = subject.create.SerializeAsString();
  }
  SECTION("Start") {
    bench.bring(subject, Stage::kCreated, *caller);
    method = "Start";
    payload = request_for<task::StartRequest>(subject).SerializeAsString();
  }
  SECTION("Exec") {
    bench.bring(subject, Stage::kRunning, *caller);
    bench.name_exec(subject, false);
    method = "Exec";
    payload = Bench::exec_request(subject);
    log = "ran; ";
  }
  SECTION("Start of an exec") {
    bench.bring(subject, Stage::kRunning, *caller);
    bench.name_exec(subject, false);
    bench.bring_exec(subject, Stage::kCreated, *caller);
    method = "Start";
    payload = request_for<task::StartRequest>(subject).SerializeAsString();
    log = "ran; ";
  }
  bench.daemon().arm("task." + method + ".before", "kill");
  const std::uint32_t stream = caller->next_stream();
  REQUIRE(caller->send(
      TtrpcProbe::request(stream, std::string(TtrpcProbe::kTaskService), method, payload)));
  REQUIRE(bench.daemon().died());
  Subject init = subject;
  init.exec.clear();
  Bench::remove_bundle(init);
  bench.daemon().start();
  const auto reply = caller->reply_to(stream);
  if (reply) CHECK(reply->code != kOk);
  caller.reset();
  CHECK(eventually([&] {
    const auto state = bench.connect()->call("State", request_for<task::StateRequest>(init));
    return state.code == kNotFound;
  }));
  CHECK(bench.log(subject) == log);
  CHECK(bench.leftovers() == "");
}

}  // namespace kuasar::test
