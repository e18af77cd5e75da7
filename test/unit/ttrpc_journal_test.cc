// The read path with a journal: peek, append, consume, answer, strike.

#include <google/protobuf/wrappers.pb.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "async/event.h"
#include "ttrpc/connection.h"
#include "ttrpc/journal.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using ttrpc::CallContext;
using ttrpc::Journal;
using ttrpc::Server;

constexpr const char* kService = "test.Service";

// What happened to a journal, shared with the test; the connection owns the journal itself.
struct Record {
  std::vector<std::string> events;
  std::vector<std::string> frames;
  std::vector<Journal::Entry> old;
  std::uint32_t last = 0;
  bool refuse = false;
  // Asked for at each append: how many bytes are in the socket.
  int socket = -1;
  std::vector<int> in_socket;
};

class RecordingJournal : public Journal {
 public:
  explicit RecordingJournal(std::shared_ptr<Record> record) : record_(std::move(record)) {}

  Result<> append(std::uint32_t stream, std::string_view frame) override {
    if (record_->refuse) return fail(Code::kResourceExhausted, "no space");
    record_->events.push_back("append " + std::to_string(stream));
    record_->frames.emplace_back(frame);
    int bytes = -1;
    ::ioctl(record_->socket, FIONREAD, &bytes);
    record_->in_socket.push_back(bytes);
    return {};
  }
  void strike(std::uint32_t stream) override {
    record_->events.push_back("strike " + std::to_string(stream));
  }
  void set_torn(Direction direction, bool torn) override {
    record_->events.push_back(std::string(direction == Direction::kInput ? "input" : "output") +
                              (torn ? " torn" : " whole"));
  }
  std::vector<Entry> unanswered() override { return record_->old; }
  std::uint32_t last_stream() const override { return record_->last; }

 private:
  std::shared_ptr<Record> record_;
};

struct Bench {
  explicit Bench(asio::any_io_executor executor) : server(std::move(executor)) {
    server.add_raw(kService, "Echo", [this](std::string data, CallContext context) {
      return echo(std::move(data), std::move(context));
    });
    server.add_raw(kService, "Wait", [this](std::string data, CallContext context) {
      return wait(std::move(data), std::move(context));
    });
  }
  void connect() {
    auto [ours, theirs] = socket_pair();
    record->socket = ours.get();
    peer = std::make_unique<RawPeer>(std::move(theirs));
    server.adopt(std::move(ours), std::make_unique<RecordingJournal>(record));
  }
  Task<Result<std::string>> echo(std::string data, CallContext context) {
    record->events.push_back("run " + data.substr(0, 20) +
                             (context.redelivered ? " redelivered" : ""));
    co_return data;
  }
  Task<Result<std::string>> wait(std::string data, CallContext context) {
    record->events.push_back("run " + data + (context.redelivered ? " redelivered" : ""));
    co_await gate.wait();
    co_return data;
  }

  Server server;
  Event gate;
  std::shared_ptr<Record> record = std::make_shared<Record>();
  std::unique_ptr<RawPeer> peer;
};

void with_bench(std::function<Task<>(Bench&)> body) {
  run_io([body]() -> Task<> {
    Bench bench(co_await asio::this_coro::executor);
    co_await body(bench);
    bench.gate.set();
    co_await bench.server.stop(5s);
  });
}

using Events = std::vector<std::string>;

// Each of `steps` happened, in this order; other things may have happened in between.
bool in_order(const Events& events, const Events& steps) {
  auto at = events.begin();
  for (const std::string& step : steps) {
    at = std::find(at, events.end(), step);
    if (at == events.end()) return false;
    ++at;
  }
  return true;
}

TEST_CASE("ttrpc journal: a request is written down before it is consumed, struck when answered",
          "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.connect();
    const std::string first = request_frame(1, kService, "Wait", "slow");
    const std::string second = request_frame(3, kService, "Echo", "quick");
    co_await expect(bench.peer->write(first + second));
    auto answer = co_await bench.peer->read();
    REQUIRE(answer);
    CHECK(answer->header.stream == 3);
    CHECK(bench.record->events.size() == 5);
    CHECK(in_order(bench.record->events, Events{"append 1", "run slow"}));
    CHECK(in_order(bench.record->events, Events{"append 3", "run quick", "strike 3"}));
    CHECK(bench.record->frames == Events{first, second});
    const int both = static_cast<int>(first.size() + second.size());
    CHECK(bench.record->in_socket == std::vector<int>{both, static_cast<int>(second.size())});
    bench.gate.set();
    answer = co_await bench.peer->read();
    REQUIRE(answer);
    CHECK(bench.record->events.back() == "strike 1");
  });
}

TEST_CASE("ttrpc journal: a frame that comes in two parts is waited for", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.connect();
    const std::string frame = request_frame(1, kService, "Echo", std::string(5000, 'x'));
    co_await expect(bench.peer->write(frame.substr(0, 4096)));
    co_await sleep_for(20ms);
    CHECK(bench.record->events.empty());
    co_await expect(bench.peer->write(frame.substr(4096)));
    const auto answer = co_await bench.peer->read();
    REQUIRE(answer);
    CHECK(answer->response.payload() == std::string(5000, 'x'));
    CHECK(bench.record->events == Events{"append 1", "run " + std::string(20, 'x'), "strike 1"});
    CHECK(bench.record->in_socket == std::vector<int>{static_cast<int>(frame.size())});
  });
}

TEST_CASE("ttrpc journal: a frame that does not fit a peek is read plainly, then written down",
          "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.connect();
    const std::string big(300'000, 'x');
    const std::string frames = request_frame(1, kService, "Echo", "before") +
                               request_frame(3, kService, "Echo", big) +
                               request_frame(5, kService, "Echo", "after");
    co_await expect(bench.peer->write(frames));
    for (const std::uint32_t stream : {1U, 3U, 5U}) {
      const auto answer = co_await bench.peer->read();
      REQUIRE(answer);
      CHECK(answer->header.stream == stream);
      if (stream == 3) CHECK(answer->response.payload() == big);
    }
    Events input;
    Events output;
    for (const std::string& event : bench.record->events) {
      if (event.starts_with("append") || event.starts_with("input")) input.push_back(event);
      if (event.starts_with("strike") || event.starts_with("output")) output.push_back(event);
    }
    CHECK(input == Events{"append 1", "input torn", "append 3", "input whole", "append 5"});
    CHECK(output == Events{"strike 1", "output torn", "output whole", "strike 3", "strike 5"});
  });
}

TEST_CASE("ttrpc journal: a peer that writes byte by byte is served", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.connect();
    // Each send() costs the peer's buffer some 700 bytes: it is full long before the frame ends.
    const std::string data(2000, 'x');
    const std::string frames = request_frame(1, kService, "Echo", data) +
                               request_frame(3, kService, "Echo", "next") +
                               request_frame(5, kService, "Echo", data);
    co_await expect(bench.peer->write(frames, 1));
    for (const std::uint32_t stream : {1U, 3U, 5U}) {
      const auto answer = co_await bench.peer->read();
      REQUIRE(answer);
      CHECK(answer->header.stream == stream);
      CHECK(answer->response.payload() == (stream == 3 ? "next" : data));
    }
  });
}

TEST_CASE("ttrpc journal: many chopped frames stay in step with the socket", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.connect();
    std::string frames;
    std::uint32_t stream = 1;
    for (int i = 0; i < 150; ++i, stream += 2) {
      const std::size_t size = i % 10 == 9 ? 70'000 + i : static_cast<std::size_t>(i * 37);
      frames += request_frame(stream, kService, "Echo", std::string(size, 'x'));
    }
    // Written while answers are read, in pieces that fit nothing.
    std::size_t at = 0;
    std::uint32_t next = 1;
    while (next < stream) {
      const std::size_t end = std::min(at + 7919, frames.size());
      if (at < frames.size()) co_await expect(bench.peer->write(frames.substr(at, end - at)));
      at = end;
      int waiting = 0;
      while (next < stream &&
             (at >= frames.size() ||
              (::ioctl(bench.peer->fd(), FIONREAD, &waiting) == 0 && waiting > 0))) {
        const auto answer = co_await bench.peer->read();
        REQUIRE(answer);
        REQUIRE(answer->header.stream == next);
        next += 2;
      }
      co_await sleep_for(100us);
    }
    CHECK(bench.record->frames.size() == 150);
    std::string seen;
    for (const std::string& frame : bench.record->frames) seen += frame;
    CHECK(seen == frames);
  });
}

TEST_CASE("ttrpc journal: what an earlier process left is run again, once", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    Record& record = *bench.record;
    const std::string seven = request_frame(7, kService, "Echo", "seven");
    record.old.push_back({request_frame(3, kService, "Wait", "three"), 1s});
    record.old.push_back({request_frame(5, kService, "Echo", "five", 1'000'000'000), 2s});
    record.old.push_back({seven, 0s});
    record.old.push_back({"no frame at all", 0s});
    record.last = 7;
    bench.connect();
    // Frame 7 had been journalled but not consumed; 9 is new.
    co_await expect(bench.peer->write(seven + request_frame(9, kService, "Echo", "nine")));
    std::map<std::uint32_t, ::ttrpc::Response> answers;
    for (int i = 0; i < 3; ++i) {
      const auto answer = co_await bench.peer->read();
      REQUIRE(answer);
      CHECK_FALSE(answers.contains(answer->header.stream));
      answers[answer->header.stream] = answer->response;
    }
    // Too old to be run.
    CHECK(answers[5].status().code() == static_cast<int>(Code::kDeadlineExceeded));
    CHECK(answers[7].payload() == "seven");
    CHECK(answers[9].payload() == "nine");
    bench.gate.set();
    const auto last = co_await bench.peer->read();
    REQUIRE(last);
    CHECK(last->header.stream == 3);
    CHECK(record.events.size() == 8);
    CHECK(in_order(record.events, Events{"run three redelivered", "run seven redelivered",
                                         "strike 7", "strike 3"}));
    CHECK(in_order(record.events, Events{"append 9", "run nine", "strike 9", "strike 3"}));
    CHECK(in_order(record.events, Events{"strike 5", "strike 3"}));
    // From the first new request on, an old id is the peer's mistake.
    co_await expect(bench.peer->write(seven));
    const auto refused = co_await bench.peer->read();
    REQUIRE(refused);
    CHECK(refused->response.status().code() == static_cast<int>(Code::kInvalidArgument));
  });
}

TEST_CASE("ttrpc journal: a request that cannot be written down is not run", "[ttrpc]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.record->refuse = true;
    bench.connect();
    co_await expect(bench.peer->write(request_frame(1, kService, "Echo", "x")));
    const auto answer = co_await bench.peer->read();
    CHECK_FALSE(answer);
    CHECK(bench.record->events.empty());
    CHECK(bench.server.connections() == 0);
  });
}

TEST_CASE("ttrpc journal: what stop does not read stays in the socket", "[ttrpc]") {
  run_io([]() -> Task<> {
    Bench bench(co_await asio::this_coro::executor);
    bench.connect();
    // As the keeper does: a duplicate keeps the connection open.
    const UniqueFd kept(::dup(bench.record->socket));
    co_await expect(bench.peer->write(request_frame(1, kService, "Echo", "x")));
    const auto answer = co_await bench.peer->read();
    REQUIRE(answer);
    co_await bench.server.stop(1s);
    const std::string late = request_frame(3, kService, "Echo", "late");
    co_await expect(bench.peer->write(late));

    Bench next(co_await asio::this_coro::executor);
    next.record->last = 1;
    next.server.adopt(UniqueFd(::dup(kept.get())), std::make_unique<RecordingJournal>(next.record));
    const auto second = co_await bench.peer->read();
    REQUIRE(second);
    CHECK(second->header.stream == 3);
    CHECK(second->response.payload() == "late");
    co_await next.server.stop(1s);
  });
}

}  // namespace
}  // namespace kuasar::test
