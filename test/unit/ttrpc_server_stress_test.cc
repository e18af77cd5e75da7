// The server under peers that do not read, and while it stops.

#include <google/protobuf/wrappers.pb.h>
#include <sys/un.h>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "async/event.h"
#include "async/task_group.h"
#include "ttrpc/client.h"
#include "ttrpc/connection.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using google::protobuf::StringValue;
using ttrpc::CallContext;
using ttrpc::Client;
using ttrpc::Server;

constexpr const char* kService = "test.Service";

Task<Result<std::string>> bytes_of(std::string payload, CallContext) {
  co_return std::string(std::stoul(payload), 'b');
}

void add_bytes(Server& server) {
  server.add_raw(kService, "Bytes", [](std::string payload, CallContext context) {
    return bytes_of(std::move(payload), std::move(context));
  });
}

UniqueFd listen_at(const std::filesystem::path& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.string().size() < sizeof address.sun_path);
  path.string().copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(fd.get(), 128) == 0);
  return fd;
}

struct TempDir {
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "ttrpc-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempDir() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

TEST_CASE("ttrpc server: a peer that never reads loses its connection, nobody else notices",
          "[ttrpc]") {
  run_io([]() -> Task<> {
    const auto executor = co_await asio::this_coro::executor;
    Server server(executor);
    add_bytes(server);
    auto [slow_end, slow] = socket_pair();
    auto [quick_end, quick] = socket_pair();
    server.adopt(std::move(slow_end));
    server.adopt(std::move(quick_end));
    RawPeer mute(std::move(slow));
    auto client = Client::adopt(executor, std::move(quick));
    REQUIRE(client);

    // 20 answers of a million bytes: the bound of 16 MiB is passed.
    std::uint32_t stream = 1;
    bool open = true;
    for (int i = 0; i < 20 && open; ++i, stream += 2) {
      open = co_await mute.write(request_frame(stream, kService, "Bytes", "1000000"));
      const auto start = std::chrono::steady_clock::now();
      auto call = (*client)->call_raw(kService, "Bytes", std::string("10"), 5s);
      const auto answer = co_await std::move(call);
      CHECK(answer == std::string(10, 'b'));
      CHECK(std::chrono::steady_clock::now() - start < 2s);
    }
    co_await expect(eventually([&] { return server.connections() == 1; }));
    auto call = (*client)->call_raw(kService, "Bytes", std::string("10"), 5s);
    co_await expect(std::move(call));
    (*client)->close();
    co_await server.stop(1s);
  });
}

TEST_CASE("ttrpc server: a peer that only sends refusals' worth is bounded too", "[ttrpc]") {
  run_io([]() -> Task<> {
    Server server(co_await asio::this_coro::executor);
    auto [ours, theirs] = socket_pair();
    server.adopt(std::move(ours));
    RawPeer mute(std::move(theirs));
    std::string burst;
    for (int i = 0; i < 4096; ++i) burst += ttrpc::encode_frame(1, 0, 2, "").value();
    int bursts = 0;
    while (server.connections() == 1 && bursts < 1000) {
      co_await mute.write(burst);
      ++bursts;
    }
    CHECK(server.connections() == 0);
    CHECK(bursts < 1000);
    co_await server.stop(1s);
  });
}

TEST_CASE("ttrpc server: big answers reach a peer that reads late, in order and whole", "[ttrpc]") {
  run_io([]() -> Task<> {
    Server server(co_await asio::this_coro::executor);
    add_bytes(server);
    auto [ours, theirs] = socket_pair();
    server.adopt(std::move(ours));
    RawPeer peer(std::move(theirs));
    std::string frames;
    const std::vector<std::size_t> sizes = {3'000'000, 1, 32'768, 32'769, 65'536, 0, 3'000'000};
    std::uint32_t stream = 1;
    for (const std::size_t size : sizes) {
      frames += request_frame(stream, kService, "Bytes", std::to_string(size));
      stream += 2;
    }
    co_await expect(peer.write(frames));
    co_await sleep_for(50ms);
    std::map<std::uint32_t, std::size_t> got;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const auto answer = co_await peer.read();
      REQUIRE(answer);
      got[answer->header.stream] = answer->response.payload().size();
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CHECK(got[static_cast<std::uint32_t>(2 * i + 1)] == sizes[i]);
    }
    co_await server.stop(1s);
  });
}

TEST_CASE("ttrpc server: a listener serves many connections at once and ends with stop",
          "[ttrpc]") {
  const TempDir dir;
  run_io([&dir]() -> Task<> {
    const auto executor = co_await asio::this_coro::executor;
    Server server(executor);
    add_bytes(server);
    TaskGroup group(executor);
    const std::string path = dir.path / "task.sock";
    group.spawn(server.serve(listen_at(path)));
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 60; ++i) {
      auto client = co_await Client::connect(path, 5s);
      REQUIRE(client);
      clients.push_back(std::move(*client));
    }
    int answered = 0;
    for (int round = 0; round < 20; ++round) {
      for (auto& client : clients) {
        group.spawn([](Client& one, int& count) -> Task<> {
          auto call = one.call_raw(kService, "Bytes", std::string("100"), 10s);
          const auto answer = co_await std::move(call);
          if (answer == std::string(100, 'b')) ++count;
        }(*client, answered));
      }
    }
    co_await expect(eventually([&] { return answered == 1200; }));
    CHECK(server.connections() == 60);
    co_await server.stop(1s);
    co_await group.join();
    CHECK(server.connections() == 0);
    co_await expect(eventually([&] { return clients[0]->closed(); }));
    const auto late = co_await Client::connect(path, 100ms);
    REQUIRE_FALSE(late);
    CHECK(late.error().code == Code::kUnavailable);
  });
}

// Handlers of three kinds: one that ends when told, one that waits for ever but must not hold up
// stop(), and one that waits twice.
struct Stopping {
  explicit Stopping(asio::any_io_executor executor) : server(std::move(executor)) {
    server.add_raw(kService, "Finish", [this](std::string, CallContext) { return wait(1); });
    server.add_raw(kService, "Twice", [this](std::string, CallContext) { return wait(2); });
    server.add_raw_wait(
        kService, "Forever",
        [this](std::string payload, CallContext) -> Result<ttrpc::Awaited<std::string>> {
          if (payload == "refused") return fail(Code::kNotFound, "nothing to wait for");
          ++waiting;
          return ttrpc::Awaited<std::string>{{&gate}, [] { return std::string("done"); }};
        });
    server.observe({[this](const CallEnd& end) { ended.emplace_back(end.method, end.code); }});
    auto [ours, theirs] = socket_pair();
    server.adopt(std::move(ours));
    peer = std::make_unique<RawPeer>(std::move(theirs));
  }
  Task<Result<std::string>> wait(int times) {
    ++running;
    for (int i = 0; i < times; ++i) co_await gate.wait();
    --running;
    co_return std::string("done");
  }
  Server server;
  Event gate;
  int running = 0;
  int waiting = 0;
  std::vector<std::pair<std::string, Code>> ended;
  std::unique_ptr<RawPeer> peer;
};

TEST_CASE("ttrpc server: a call that waits is answered at its event, or refused at once",
          "[ttrpc]") {
  run_io([]() -> Task<> {
    Stopping bench(co_await asio::this_coro::executor);
    std::string frames =
        request_frame(1, kService, "Forever") + request_frame(3, kService, "Forever", "refused");
    co_await expect(bench.peer->write(frames));
    auto answer = co_await bench.peer->read();
    CHECK(answer->header.stream == 3);
    CHECK(answer->response.status().code() == static_cast<int>(Code::kNotFound));
    CHECK(bench.waiting == 1);
    bench.gate.set();
    answer = co_await bench.peer->read();
    CHECK(answer->header.stream == 1);
    CHECK(answer->response.payload() == "done");
    // What it waits for may have happened before.
    co_await expect(bench.peer->write(request_frame(5, kService, "Forever")));
    answer = co_await bench.peer->read();
    CHECK(answer->response.payload() == "done");
    using Ends = std::vector<std::pair<std::string, Code>>;
    CHECK(bench.ended ==
          Ends{{"Forever", Code::kNotFound}, {"Forever", Code::kOk}, {"Forever", Code::kOk}});
    co_await bench.server.stop(1s);
  });
}

TEST_CASE("ttrpc server: a call that waits ends with its connection, or when it took too long",
          "[ttrpc]") {
  run_io([]() -> Task<> {
    Stopping bench(co_await asio::this_coro::executor);
    co_await expect(bench.peer->write(request_frame(1, kService, "Forever", "", 20000000) +
                                      request_frame(3, kService, "Forever")));
    const auto answer = co_await bench.peer->read();
    CHECK(answer->header.stream == 1);
    CHECK(answer->response.status().code() == static_cast<int>(Code::kDeadlineExceeded));
    bench.peer.reset();
    co_await expect(eventually([&] { return bench.ended.size() == 2; }));
    CHECK(bench.ended.back() == std::pair(std::string("Forever"), Code::kUnavailable));
    bench.gate.set();
    co_await sleep_for(1ms);
    CHECK(bench.ended.size() == 2);
    co_await bench.server.stop(1s);
  });
}

TEST_CASE("ttrpc server: stop lets calls finish and their answers leave", "[ttrpc]") {
  run_io([]() -> Task<> {
    const auto executor = co_await asio::this_coro::executor;
    Stopping bench(executor);
    std::string frames = request_frame(1, kService, "Finish") +
                         request_frame(3, kService, "Twice") +
                         request_frame(5, kService, "Forever");
    co_await expect(bench.peer->write(frames));
    co_await expect(eventually([&] { return bench.running == 2 && bench.waiting == 1; }));
    TaskGroup group(executor);
    const auto start = std::chrono::steady_clock::now();
    group.spawn(bench.server.stop(20s));
    co_await sleep_for(20ms);
    CHECK(bench.server.connections() == 1);
    // What arrives now is not read: it was not run.
    co_await expect(bench.peer->write(request_frame(7, kService, "Finish")));
    bench.gate.set();
    std::map<std::uint32_t, std::string> answers;
    while (const auto answer = co_await bench.peer->read()) {
      answers[answer->header.stream] = answer->response.payload();
    }
    CHECK(answers[1] == "done");
    CHECK(answers[3] == "done");
    CHECK_FALSE(answers.contains(7));
    co_await group.join();
    CHECK(std::chrono::steady_clock::now() - start < 10s);
    CHECK(bench.running == 0);
  });
}

TEST_CASE("ttrpc server: stop does not wait for endless calls, and cancels after its grace",
          "[ttrpc]") {
  run_io([]() -> Task<> {
    Stopping bench(co_await asio::this_coro::executor);
    co_await expect(bench.peer->write(request_frame(1, kService, "Forever")));
    co_await expect(eventually([&] { return bench.waiting == 1; }));
    const auto start = std::chrono::steady_clock::now();
    co_await bench.server.stop(20s);
    CHECK(std::chrono::steady_clock::now() - start < 10s);
    CHECK(bench.ended.size() == 1);
    // The call was cut, not answered.
    const auto answer = co_await bench.peer->read();
    CHECK_FALSE(answer);
  });
  run_io([]() -> Task<> {
    Stopping bench(co_await asio::this_coro::executor);
    co_await expect(bench.peer->write(request_frame(1, kService, "Twice")));
    co_await expect(eventually([&] { return bench.running == 1; }));
    co_await bench.server.stop(50ms);
    CHECK(bench.running == 0);
    const auto answer = co_await bench.peer->read();
    CHECK_FALSE(answer);
    // Stopped means stopped.
    auto [ours, theirs] = socket_pair();
    bench.server.adopt(std::move(ours));
    CHECK(bench.server.connections() == 0);
    co_await bench.server.stop(0s);
  });
}

}  // namespace
}  // namespace kuasar::test
