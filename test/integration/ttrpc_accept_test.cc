// Accepting while the process has no descriptor left.

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>

#include "async/task_group.h"
#include "ttrpc/client.h"
#include "ttrpc/server.h"

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;

Task<Result<std::string>> echo(std::string payload, ttrpc::CallContext) {
  co_return payload;
}

std::chrono::nanoseconds cpu_time() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

// Every descriptor below this one is open.
int lowest_free_descriptor() {
  const UniqueFd probe(::dup(STDERR_FILENO));
  return probe.get();
}

struct Outcome {
  bool connected = false;
  bool waited_quietly = false;
  bool answered = false;
};

// The limit on descriptors is lowered so far that connect() succeeds (the backlog) and accept()
// cannot.
Task<> starve(UniqueFd listener, std::string path, Outcome& outcome) {
  const auto executor = co_await asio::this_coro::executor;
  ttrpc::Server server(executor);
  server.add_raw("test.Service", "Echo", [](std::string payload, ttrpc::CallContext context) {
    return echo(std::move(payload), std::move(context));
  });
  TaskGroup group(executor);
  group.spawn(server.serve(std::move(listener)));
  co_await sleep_for(20ms);

  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  // One more descriptor: the client's socket.
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(lowest_free_descriptor()) + 1;
  ::setrlimit(RLIMIT_NOFILE, &low);
  auto client = co_await ttrpc::Client::connect(path, 1s);
  outcome.connected = client.has_value();
  const auto used = cpu_time();
  co_await sleep_for(500ms);
  outcome.waited_quietly = server.connections() == 0 && cpu_time() - used < 250ms;
  ::setrlimit(RLIMIT_NOFILE, &before);
  if (client) {
    auto call = (*client)->call_raw("test.Service", "Echo", std::string("hello"), 5s);
    outcome.answered = co_await std::move(call) == std::string("hello");
    (*client)->close();
  }
  co_await server.stop(1s);
  co_await group.join();
}

TEST_CASE("ttrpc server: without descriptors it waits quietly and then goes on", "[ttrpc]") {
#ifdef __SANITIZE_ADDRESS__
  SKIP("UBSan's own checks need descriptors");
#endif
  std::string dir = (std::filesystem::temp_directory_path() / "accept-XXXXXX").string();
  REQUIRE(::mkdtemp(dir.data()) != nullptr);
  const std::string path = dir + "/s";
  UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), 8) == 0);

  Outcome outcome;
  asio::io_context io;
  spawn_root(io.get_executor(), starve(std::move(listener), path, outcome));
  io.run_for(20s);
  CHECK(io.stopped());
  CHECK(outcome.connected);
  CHECK(outcome.waited_quietly);
  CHECK(outcome.answered);
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace kuasar::test
