#include <google/protobuf/wrappers.pb.h>

#include <catch2/catch_test_macros.hpp>
#include <map>
#include <vector>

#include "async/event.h"
#include "async/task_group.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using google::protobuf::StringValue;
using ttrpc::CallContext;
using ttrpc::kMaxData;
using ttrpc::Server;

constexpr const char* kService = "test.Service";

StringValue text(std::string value) {
  StringValue message;
  message.set_value(std::move(value));
  return message;
}

std::string payload(std::string value) {
  return text(std::move(value)).SerializeAsString();
}

Task<Result<StringValue>> echo(StringValue request, CallContext) {
  co_return request;
}

// A server with one raw peer, and a gate that handlers of "Wait" stand at.
struct Bench {
  explicit Bench(asio::any_io_executor executor) : server(std::move(executor)) {
    server.add<StringValue, StringValue>(kService, "Echo", echo);
    server.add<StringValue, StringValue>(kService, "Wait",
                                         [this](StringValue request, CallContext context) {
                                           return wait(std::move(request), std::move(context));
                                         });
    server.add_unimplemented(kService, "Later", "Later comes with a later issue");
    auto [ours, theirs] = socket_pair();
    server.adopt(std::move(ours));
    peer = std::make_unique<RawPeer>(std::move(theirs));
  }

  Task<Result<StringValue>> wait(StringValue request, CallContext context) {
    ++waiting;
    contexts.push_back(context);
    co_await gate.wait();
    --waiting;
    ++ended;
    co_return request;
  }

  Server server;
  Event gate;
  int waiting = 0;
  int ended = 0;
  std::vector<CallContext> contexts;
  std::unique_ptr<RawPeer> peer;
};

void check_refused(const std::optional<RawPeer::Answer>& answer, std::uint32_t stream, Code code,
                   std::string_view words) {
  REQUIRE(answer);
  CHECK(answer->header.stream == stream);
  CHECK(answer->header.type == ttrpc::kTypeResponse);
  CHECK(answer->response.status().code() == static_cast<int>(code));
  CHECK(answer->response.payload().empty());
  INFO(answer->response.status().message());
  CHECK(answer->response.status().message().find(words) != std::string::npos);
}

void with_bench(std::function<Task<>(Bench&)> body) {
  run_io([body]() -> Task<> {
    Bench bench(co_await asio::this_coro::executor);
    co_await body(bench);
    bench.gate.set();
    co_await bench.server.stop(5s);
    CHECK(bench.server.connections() == 0);
  });
}

Task<Result<std::string>> give(Result<std::string> what) {
  co_return what;
}

TEST_CASE("ttrpc server: containerd's requests get the shim's answers, byte for byte", "[ttrpc]") {
  const auto frames = all_captured();
  // Requests and answers of each connection, paired by stream.
  struct Call {
    std::string request;
    std::string response;
  };
  std::map<std::string, std::map<std::uint32_t, Call>> connections;
  for (const auto& [name, bytes] : frames) {
    const auto header = ttrpc::decode_header(bytes);
    Call& call = connections[name.substr(0, name.find_first_of("0123456789"))][header->stream];
    (header->type == ttrpc::kTypeRequest ? call.request : call.response) = bytes;
  }
  std::size_t compared = 0;
  for (const auto& [name, calls] : connections) {
    for (const auto& [stream, call] : calls) {
      if (call.request.empty() || call.response.empty()) continue;
      ++compared;
      INFO(name << stream);
      ::ttrpc::Request request;
      REQUIRE(request.ParseFromString(call.request.substr(ttrpc::kHeaderSize)));
      ::ttrpc::Response response;
      REQUIRE(response.ParseFromString(call.response.substr(ttrpc::kHeaderSize)));
      Result<std::string> result = response.payload();
      if (response.has_status()) {
        result = fail(
            Error{static_cast<Code>(response.status().code()), 0, response.status().message()});
      }
      run_io([request, call, result]() -> Task<> {
        Server server(co_await asio::this_coro::executor);
        server.add_raw(request.service(), request.method(),
                       [request, result](std::string data, CallContext context) {
                         CHECK(data == request.payload());
                         CHECK(context.find("containerd-namespace-ttrpc") == "k8s.io");
                         CHECK_FALSE(context.find("traceparent"));
                         CHECK(context.deadline.has_value() == (request.timeout_nano() != 0));
                         CHECK_FALSE(context.redelivered);
                         return give(result);
                       });
        auto [ours, theirs] = socket_pair();
        server.adopt(std::move(ours));
        RawPeer peer(std::move(theirs));
        co_await expect(peer.write(call.request));
        const auto answer = co_await peer.read();
        REQUIRE(answer);
        CHECK(answer->bytes == call.response);
        co_await server.stop(1s);
      });
    }
  }
  CHECK(compared >= 20);
}

TEST_CASE("ttrpc server: calls run concurrently and answers leave as they come", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    std::string frames = request_frame(1, kService, "Wait", payload("slow"));
    for (std::uint32_t i = 1; i <= 100; ++i) {
      frames += request_frame(2 * i + 1, kService, "Echo", payload(std::to_string(i)));
    }
    co_await expect(bench.peer->write(frames));
    std::map<std::uint32_t, std::string> answers;
    for (int i = 0; i < 100; ++i) {
      const auto answer = co_await bench.peer->read();
      REQUIRE(answer);
      CHECK_FALSE(answer->response.has_status());
      answers[answer->header.stream] = answer->response.payload();
    }
    for (std::uint32_t i = 1; i <= 100; ++i)
      CHECK(answers[2 * i + 1] == payload(std::to_string(i)));
    CHECK(bench.waiting == 1);
    bench.gate.set();
    const auto last = co_await bench.peer->read();
    REQUIRE(last);
    CHECK(last->header.stream == 1);
    CHECK(last->response.payload() == payload("slow"));
  });
}

TEST_CASE("ttrpc server: what it does not serve is refused in words", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    co_await expect(peer.write(request_frame(1, "no.Service", "Echo")));
    auto answer = co_await peer.read();
    check_refused(answer, 1, Code::kUnimplemented, "no.Service");
    co_await expect(peer.write(request_frame(3, kService, "Absent")));
    answer = co_await peer.read();
    check_refused(answer, 3, Code::kUnimplemented, "test.Service.Absent");
    co_await expect(peer.write(request_frame(5, kService, "Later")));
    answer = co_await peer.read();
    check_refused(answer, 5, Code::kUnimplemented, "Later comes with a later issue");
    co_await expect(peer.write(request_frame(7, kService, "Echo", "\xff\xff\xff")));
    answer = co_await peer.read();
    check_refused(answer, 7, Code::kInvalidArgument, "google.protobuf.StringValue");
    const std::string no_request = ttrpc::encode_frame(1, 0, 9, "\x07\x07\x07").value();
    co_await expect(peer.write(no_request));
    answer = co_await peer.read();
    check_refused(answer, 9, Code::kInvalidArgument, "not a ttrpc request");
    std::uint32_t stream = 11;
    for (const std::uint8_t flags : {1, 2, 3, 4, 5}) {
      const std::string frame = request_frame(stream, kService, "Echo", payload("x"), 0, flags);
      co_await expect(peer.write(frame));
      answer = co_await peer.read();
      check_refused(answer, stream, Code::kUnimplemented, "streaming");
      stream += 2;
    }
    // After all that an ordinary call works.
    co_await expect(peer.write(request_frame(stream, kService, "Echo", payload("fine"))));
    answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == payload("fine"));
  });
}

TEST_CASE("ttrpc server: stream ids are odd and rise", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    co_await expect(peer.write(request_frame(5, kService, "Echo", payload("first"))));
    auto answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == payload("first"));
    for (const std::uint32_t stream : {0U, 2U, 6U, 5U, 3U, 1U, 0xfffffffeU}) {
      co_await expect(peer.write(request_frame(stream, kService, "Echo", payload("x"))));
      answer = co_await peer.read();
      check_refused(answer, stream, Code::kInvalidArgument, "stream id");
    }
    co_await expect(peer.write(request_frame(0xffffffffU, kService, "Echo", payload("last"))));
    answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == payload("last"));
  });
}

TEST_CASE("ttrpc server: frames that are no requests are passed over", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    std::string frames;
    for (const std::uint8_t type : {0, 2, 3, 4, 255}) {
      frames += ttrpc::encode_frame(type, 5, 1, "whatever").value();
    }
    frames += request_frame(1, kService, "Echo", payload("x"));
    co_await expect(bench.peer->write(frames));
    const auto answer = co_await bench.peer->read();
    REQUIRE(answer);
    CHECK(answer->header.stream == 1);
    CHECK(answer->response.payload() == payload("x"));
  });
}

TEST_CASE("ttrpc server: bytes that are no ttrpc close the connection", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    co_await expect(bench.peer->write("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    const auto answer = co_await bench.peer->read();
    CHECK_FALSE(answer);
    CHECK(bench.server.connections() == 0);
  });
}

TEST_CASE("ttrpc server: a peer that leaves inside a frame harms nobody", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    const std::string frame = request_frame(1, kService, "Echo", payload("x"));
    co_await expect(bench.peer->write(frame.substr(0, frame.size() - 1)));
    bench.peer->close();
    co_await expect(eventually([&] { return bench.server.connections() == 0; }));
  });
}

TEST_CASE("ttrpc server: a deadline is answered while its handler runs on", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    co_await expect(peer.write(request_frame(1, kService, "Wait", payload("x"), 20'000'000)));
    auto answer = co_await peer.read();
    check_refused(answer, 1, Code::kDeadlineExceeded, "timeout");
    CHECK(bench.waiting == 1);
    REQUIRE(bench.contexts.size() == 1);
    CHECK(bench.contexts[0].deadline);
    bench.gate.set();
    co_await expect(eventually([&] { return bench.ended == 1; }));
    // The late result is dropped: the next frame answers the next call.
    co_await expect(peer.write(request_frame(3, kService, "Echo", payload("y"), 60'000'000'000)));
    answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->header.stream == 3);
    // A deadline that has passed: not run at all.
    co_await expect(peer.write(request_frame(5, kService, "Wait", payload("x"), -1)));
    answer = co_await peer.read();
    check_refused(answer, 5, Code::kDeadlineExceeded, "late");
    CHECK(bench.contexts.size() == 1);
    // The longest one does not overflow.
    const std::int64_t longest = std::numeric_limits<std::int64_t>::max();
    co_await expect(peer.write(request_frame(7, kService, "Echo", payload("z"), longest)));
    answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == payload("z"));
  });
}

TEST_CASE("ttrpc server: a call over the limit is refused and the others are answered", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    std::string frames;
    std::uint32_t stream = 1;
    for (std::size_t i = 0; i < ttrpc::kMaxUnanswered; ++i, stream += 2) {
      frames += request_frame(stream, kService, "Wait", payload("x"));
    }
    co_await expect(peer.write(frames));
    co_await expect(
        eventually([&] { return bench.waiting == static_cast<int>(ttrpc::kMaxUnanswered); }));
    for (int i = 0; i < 3; ++i, stream += 2) {
      co_await expect(peer.write(request_frame(stream, kService, "Echo", payload("x"))));
      const auto answer = co_await peer.read();
      check_refused(answer, stream, Code::kResourceExhausted, "1024");
    }
    bench.gate.set();
    for (std::size_t i = 0; i < ttrpc::kMaxUnanswered; ++i) {
      const auto answer = co_await peer.read();
      REQUIRE(answer);
      CHECK_FALSE(answer->response.has_status());
    }
    co_await expect(peer.write(request_frame(stream, kService, "Echo", payload("again"))));
    const auto answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == payload("again"));
  });
}

TEST_CASE("ttrpc server: handlers whose deadline has passed are bounded too", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    std::uint32_t stream = 1;
    std::size_t exhausted = 0;
    for (std::size_t i = 0; i < ttrpc::kMaxRunning + 10; ++i, stream += 2) {
      co_await expect(peer.write(request_frame(stream, kService, "Wait", payload("x"), 1'000)));
      const auto answer = co_await peer.read();
      REQUIRE(answer);
      if (answer->response.status().code() == static_cast<int>(Code::kResourceExhausted)) {
        ++exhausted;
      } else {
        check_refused(answer, stream, Code::kDeadlineExceeded, "");
      }
    }
    CHECK(exhausted == 10);
  });
}

TEST_CASE("ttrpc server: 4 MiB is the limit of requests and of answers", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    RawPeer& peer = *bench.peer;
    const std::string over = [] {
      std::string bytes;
      ttrpc::append_header(bytes, {kMaxData + 1, 1, ttrpc::kTypeRequest, 0});
      return bytes + std::string(kMaxData + 1, 'x');
    }();
    co_await expect(peer.write(over));
    auto answer = co_await peer.read();
    check_refused(answer, 1, Code::kResourceExhausted, "4194305");

    // A request that just fits: its answer is as long and fits too.
    const std::size_t extra =
        request_frame(3, kService, "Echo", payload(std::string(4'000'000, 'y'))).size() -
        4'000'000 - ttrpc::kHeaderSize;
    const std::string most(kMaxData - extra, 'y');
    co_await expect(peer.write(request_frame(3, kService, "Echo", payload(most))));
    answer = co_await peer.read();
    REQUIRE(answer);
    CHECK(answer->header.stream == 3);
    CHECK(answer->response.payload() == payload(most));
  });
  run_io([]() -> Task<> {
    Server server(co_await asio::this_coro::executor);
    server.add<StringValue, StringValue>(kService, "Big",
                                         [](StringValue, CallContext) -> Task<Result<StringValue>> {
                                           co_return text(std::string(kMaxData + 1, 'x'));
                                         });
    server.add_raw(kService, "Edge",
                   [](std::string, CallContext) { return give(std::string(kMaxData, 'x')); });
    auto [ours, theirs] = socket_pair();
    server.adopt(std::move(ours));
    RawPeer peer(std::move(theirs));
    co_await expect(peer.write(request_frame(1, kService, "Big")));
    auto answer = co_await peer.read();
    check_refused(answer, 1, Code::kResourceExhausted, "4194304");
    // The payload fits, the response around it does not.
    co_await expect(peer.write(request_frame(3, kService, "Edge")));
    answer = co_await peer.read();
    check_refused(answer, 3, Code::kResourceExhausted, "4194304");
    co_await server.stop(1s);
  });
}

TEST_CASE("ttrpc server: handlers learn that their peer has gone", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    co_await expect(bench.peer->write(request_frame(1, kService, "Wait", payload("x"))));
    co_await expect(eventually([&] { return bench.waiting == 1; }));
    const std::shared_ptr<ttrpc::Peer> peer = bench.contexts[0].peer;
    CHECK_FALSE(peer->closed());
    CHECK(peer->id() > 0);
    bench.peer->close();
    co_await expect(peer->closed_event().wait_for(10s));
    CHECK(peer->closed());
    CHECK(bench.server.connections() == 0);
    // The handler is not cancelled; its answer goes nowhere.
    CHECK(bench.waiting == 1);
    bench.gate.set();
    co_await expect(eventually([&] { return bench.ended == 1; }));
  });
}

TEST_CASE("ttrpc server: a peer of another user is refused", "[ttrpc]") {
  if (::geteuid() != 0) SKIP("needs root to become another user");
  run_io([]() -> Task<> {
    Server server(co_await asio::this_coro::executor);
    server.add<StringValue, StringValue>(kService, "Echo", echo);
    REQUIRE(::seteuid(65534) == 0);
    auto [ours, theirs] = socket_pair();
    REQUIRE(::seteuid(0) == 0);
    server.adopt(std::move(ours));
    CHECK(server.connections() == 0);
    RawPeer peer(std::move(theirs));
    const auto answer = co_await peer.read();
    CHECK_FALSE(answer);
    co_await server.stop(1s);
  });
}

TEST_CASE("ttrpc server: what is no stream socket is refused", "[ttrpc]") {
  run_io([]() -> Task<> {
    Server server(co_await asio::this_coro::executor);
    int pipe_fds[2];
    REQUIRE(::pipe2(pipe_fds, O_CLOEXEC) == 0);
    const UniqueFd writer(pipe_fds[1]);
    server.adopt(UniqueFd(pipe_fds[0]));
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds) == 0);
    const UniqueFd other(fds[1]);
    server.adopt(UniqueFd(fds[0]));
    server.adopt(UniqueFd());
    CHECK(server.connections() == 0);
    co_await server.stop(1s);
  });
}

}  // namespace
}  // namespace kuasar::test
