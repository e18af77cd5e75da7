#include <google/protobuf/wrappers.pb.h>
#include <sys/un.h>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "async/task_group.h"
#include "google/rpc/status.pb.h"
#include "ttrpc/client.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using google::protobuf::StringValue;
using ttrpc::Client;

constexpr const char* kService = "test.Service";

// A client whose server is the test itself.
struct Pair {
  explicit Pair(asio::any_io_executor executor) {
    auto [ours, theirs] = socket_pair();
    auto made = Client::adopt(std::move(executor), std::move(ours));
    REQUIRE(made);
    client = std::move(*made);
    peer = std::make_unique<RawPeer>(std::move(theirs));
  }
  std::unique_ptr<Client> client;
  std::unique_ptr<RawPeer> peer;
};

void with_pair(std::function<Task<>(Pair&, TaskGroup&)> body) {
  run_io([body]() -> Task<> {
    const auto executor = co_await asio::this_coro::executor;
    Pair pair(executor);
    TaskGroup group(executor);
    co_await body(pair, group);
    pair.client.reset();
    co_await group.join();
  });
}

StringValue text(std::string value) {
  StringValue message;
  message.set_value(std::move(value));
  return message;
}

std::string response_frame(std::uint32_t stream, const std::string& payload) {
  ::ttrpc::Response response;
  response.set_payload(payload);
  return ttrpc::encode_frame(ttrpc::kTypeResponse, 0, stream, response.SerializeAsString()).value();
}

// One call, its outcome stored where the test sees it.
using Outcome = std::optional<Result<StringValue>>;

Task<> call_into(Client& client, std::chrono::nanoseconds timeout, Outcome& outcome,
                 std::string value = "request") {
  auto call = client.call<StringValue>(kService, "Method", text(std::move(value)), timeout);
  outcome = co_await std::move(call);
}

Code code_of(const Outcome& outcome) {
  REQUIRE(outcome);
  REQUIRE_FALSE(*outcome);
  return outcome->error().code;
}

TEST_CASE("ttrpc client: its request is the one that containerd would send", "[ttrpc]") {
  const std::string frame = captured("events-001-forward-request");
  ::ttrpc::Request request;
  REQUIRE(request.ParseFromString(frame.substr(ttrpc::kHeaderSize)));
  with_pair([&](Pair& pair, TaskGroup& group) -> Task<> {
    Result<std::string> answer = std::string();
    group.spawn([](Client& client, ::ttrpc::Request what, Result<std::string>& into) -> Task<> {
      ttrpc::Metadata metadata;
      metadata.emplace_back(what.metadata(0).key(), what.metadata(0).value());
      auto call = client.call_raw(what.service(), what.method(), what.payload(),
                                  std::chrono::nanoseconds(what.timeout_nano()), metadata);
      into = co_await std::move(call);
    }(*pair.client, request, answer));
    const auto sent = co_await pair.peer->read();
    REQUIRE(sent);
    CHECK(sent->bytes == frame);
    co_await expect(pair.peer->write(captured("events-002-forward-response")));
    co_await group.join();
    CHECK(answer == std::string());
  });
}

TEST_CASE("ttrpc client: errors of the shim arrive as they are", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    Outcome outcome;
    group.spawn(call_into(*pair.client, 10s, outcome));
    // failed-create-002 answers stream 1.
    co_await expect(pair.peer->read());
    co_await expect(pair.peer->write(captured("failed-create-002-create-response")));
    co_await group.join();
    CHECK(code_of(outcome) == Code::kUnknown);
    CHECK(outcome->error().message.starts_with("OCI runtime create failed: "));
  });
}

TEST_CASE("ttrpc client: answers find their calls in any order", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    constexpr int kCalls = 500;
    std::vector<Outcome> outcomes(kCalls);
    for (int i = 0; i < kCalls; ++i) {
      group.spawn(
          call_into(*pair.client, 20s, outcomes[static_cast<std::size_t>(i)], std::to_string(i)));
    }
    std::map<std::uint32_t, std::string> requests;
    std::uint32_t last = 0;
    for (int i = 0; i < kCalls; ++i) {
      const auto request = co_await pair.peer->read();
      REQUIRE(request);
      CHECK(request->header.type == ttrpc::kTypeRequest);
      CHECK(request->header.stream == (i == 0 ? 1 : last + 2));
      last = request->header.stream;
      ::ttrpc::Request parsed;
      REQUIRE(parsed.ParseFromString(request->bytes.substr(ttrpc::kHeaderSize)));
      CHECK(parsed.timeout_nano() == 20'000'000'000);
      requests[last] = parsed.payload();
    }
    for (auto it = requests.rbegin(); it != requests.rend(); ++it) {
      co_await expect(pair.peer->write(response_frame(it->first, it->second)));
    }
    co_await group.join();
    for (int i = 0; i < kCalls; ++i) {
      const Outcome& outcome = outcomes[static_cast<std::size_t>(i)];
      REQUIRE(outcome);
      REQUIRE(*outcome);
      CHECK((*outcome)->value() == std::to_string(i));
    }
  });
}

TEST_CASE("ttrpc client: a call times out alone and its late answer is dropped", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    Outcome hasty;
    Outcome patient;
    group.spawn(call_into(*pair.client, 20ms, hasty));
    group.spawn(call_into(*pair.client, 0s, patient));
    co_await expect(eventually([&] { return hasty.has_value(); }));
    CHECK(code_of(hasty) == Code::kDeadlineExceeded);
    CHECK(hasty->error().message == "test.Service.Method did not answer in 20 ms");
    const std::string payload = text("late").SerializeAsString();
    co_await expect(pair.peer->write(response_frame(1, payload) + response_frame(99, payload) +
                                     response_frame(3, text("good").SerializeAsString())));
    co_await group.join();
    REQUIRE(patient);
    REQUIRE(*patient);
    CHECK((*patient)->value() == "good");
    Outcome none;
    co_await call_into(*pair.client, -1ns, none);
    CHECK(code_of(none) == Code::kDeadlineExceeded);
  });
}

TEST_CASE("ttrpc client: a lost connection ends every call, and later ones at once", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    Outcome first;
    Outcome second;
    group.spawn(call_into(*pair.client, 0s, first));
    group.spawn(call_into(*pair.client, 20s, second));
    co_await expect(pair.peer->read());
    co_await expect(pair.peer->read());
    pair.peer->close();
    co_await group.join();
    CHECK(code_of(first) == Code::kUnavailable);
    CHECK(code_of(second) == Code::kUnavailable);
    CHECK(pair.client->closed());
    Outcome third;
    co_await call_into(*pair.client, 20s, third);
    CHECK(code_of(third) == Code::kUnavailable);
    CHECK(third->error().message == "ttrpc connection closed: the peer closed the connection");
  });
}

TEST_CASE("ttrpc client: destroying it ends its calls", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    Outcome outcome;
    group.spawn(call_into(*pair.client, 0s, outcome));
    co_await expect(pair.peer->read());
    pair.client.reset();
    co_await group.join();
    CHECK(code_of(outcome) == Code::kUnavailable);
  });
}

TEST_CASE("ttrpc client: cancelling the coroutine cancels the call only", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup& group) -> Task<> {
    Outcome outcome;
    group.spawn(call_into(*pair.client, 0s, outcome));
    co_await expect(pair.peer->read());
    group.cancel();
    co_await group.join();
    CHECK(code_of(outcome) == Code::kCancelled);
    CHECK_FALSE(pair.client->closed());
    co_await expect(pair.peer->write(response_frame(1, text("late").SerializeAsString())));
    Outcome next;
    group.spawn(call_into(*pair.client, 20s, next));
    co_await expect(pair.peer->read());
    co_await expect(pair.peer->write(response_frame(3, text("next").SerializeAsString())));
    co_await group.join();
    REQUIRE(next);
    REQUIRE(*next);
    CHECK((*next)->value() == "next");
  });
}

TEST_CASE("ttrpc client: answers that are none", "[ttrpc]") {
  struct Row {
    const char* what;
    std::string frame;
    Code code;
  };
  std::string over;
  ttrpc::append_header(over, {ttrpc::kMaxData + 1, 1, ttrpc::kTypeResponse, 0});
  over += std::string(ttrpc::kMaxData + 1, 'x');
  const std::vector<Row> rows = {
      {"no response message", ttrpc::encode_frame(2, 0, 1, "\x07\x07").value(), Code::kInternal},
      {"another payload", response_frame(1, "\xff\xff"), Code::kInternal},
      {"too long", over, Code::kResourceExhausted},
      {"not ttrpc", "HTTP/1.1 400 Bad Request\r\n\r\n", Code::kUnavailable},
  };
  for (const Row& row : rows) {
    INFO(row.what);
    with_pair([&](Pair& pair, TaskGroup& group) -> Task<> {
      Outcome outcome;
      group.spawn(call_into(*pair.client, 20s, outcome));
      co_await expect(pair.peer->read());
      co_await expect(pair.peer->write(row.frame));
      co_await group.join();
      CHECK(code_of(outcome) == row.code);
    });
  }
}

TEST_CASE("ttrpc client: a request over the limit is refused here", "[ttrpc]") {
  with_pair([](Pair& pair, TaskGroup&) -> Task<> {
    Outcome outcome;
    co_await call_into(*pair.client, 20s, outcome, std::string(ttrpc::kMaxData, 'x'));
    CHECK(code_of(outcome) == Code::kResourceExhausted);
    CHECK_FALSE(pair.client->closed());
  });
}

TEST_CASE("ttrpc client: connecting says what is wrong", "[ttrpc]") {
  run_io([]() -> Task<> {
    const std::string dir = std::filesystem::temp_directory_path();
    const auto absent = co_await Client::connect(dir + "/no-such-socket-here", 1s);
    REQUIRE_FALSE(absent);
    CHECK(absent.error().code == Code::kUnavailable);
    CHECK(absent.error().err == ENOENT);
    const auto too_long = co_await Client::connect("/" + std::string(108, 'x'), 1s);
    REQUIRE_FALSE(too_long);
    CHECK(too_long.error().code == Code::kInvalidArgument);
    const auto empty = co_await Client::connect("", 1s);
    REQUIRE_FALSE(empty);
    CHECK(empty.error().code == Code::kInvalidArgument);
  });
}

}  // namespace
}  // namespace kuasar::test
