#include "daemon/metrics.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/files.h"
#include "daemon/metrics_server.h"
#include "support/io_fixture.h"
#include "support/wait.h"

// Metrics as text, and the HTTP in front of them.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using daemon::MetricsAddress;
using daemon::MetricsServer;

struct Server {
  explicit Server(std::chrono::milliseconds timeout = 5s)
      : server(
            io.executor(), [this] { return ++asked, text; }, timeout) {
    char name[] = "/tmp/kuasar-metrics-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir = name;
    MetricsAddress address;
    address.path = dir / "m.sock";
    REQUIRE(server.begin(address));
  }
  ~Server() {
    io.run(server.stop());
    CHECK_FALSE(fs::exists(dir / "m.sock"));
    fs::remove_all(dir);
  }
  UniqueFd connect() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = dir / "m.sock";
    std::memcpy(address.sun_path, path.data(), path.size());
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    return fd;
  }
  // What comes until the server closes its end.
  std::string rest(const UniqueFd& fd) {
    std::string all;
    const bool ended = wait_until(
        [&] {
          io.settle();
          pollfd entry{fd.get(), POLLIN, 0};
          while (::poll(&entry, 1, 0) > 0) {
            char buffer[4096];
            const ssize_t size = ::read(fd.get(), buffer, sizeof buffer);
            if (size <= 0) return true;
            all.append(buffer, static_cast<std::size_t>(size));
          }
          return false;
        },
        10s);
    CHECK(ended);
    return all;
  }
  std::string ask(const std::string& request) {
    const UniqueFd fd = connect();
    REQUIRE(::write(fd.get(), request.data(), request.size()) ==
            static_cast<ssize_t>(request.size()));
    return rest(fd);
  }

  IoFixture io;
  std::string text = "kuasar_x 1\n";
  int asked = 0;
  fs::path dir;
  MetricsServer server;
};

CallEnd call(std::string_view method, Code code, std::chrono::milliseconds took) {
  const auto begun = std::chrono::steady_clock::time_point(1000s);
  return {"Task", method, code, begun, begun + took};
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("metrics server: GET /metrics, and words for everything else") {
  Server f;
  struct stat st {};
  REQUIRE(::stat((f.dir / "m.sock").c_str(), &st) == 0);
  CHECK((st.st_mode & 0777) == 0600);
  const std::string good = f.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(good.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
  CHECK(good.find("\r\nContent-Length: 11\r\n") != std::string::npos);
  CHECK(good.ends_with("\r\n\r\nkuasar_x 1\n"));
  CHECK(f.ask("GET /metrics?x=y HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 OK\r\n"));
  CHECK(f.asked == 2);
  CHECK(f.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
  CHECK(f.ask("POST /metrics HTTP/1.1\r\n\r\nbody").starts_with("HTTP/1.1 405 "));
  CHECK(f.ask("hello\r\n\r\n").starts_with("HTTP/1.1 400 "));
  CHECK(f.ask("GET /metrics SPDY/1\r\n\r\n").starts_with("HTTP/1.1 400 "));
  CHECK(
      f.ask("GET /metrics HTTP/1.1\r\nX: " + std::string(10000, 'x')).starts_with("HTTP/1.1 431 "));
  CHECK(f.asked == 2);
}

TEST_CASE("metrics server: a request that does not come ends with its time") {
  Server f(100ms);
  const UniqueFd silent = f.connect();
  REQUIRE(::write(silent.get(), "GET /met", 8) == 8);
  CHECK(f.rest(silent).empty());
  CHECK(f.asked == 0);
  CHECK(f.ask("GET /metrics HTTP/1.1\r\n\r\n").ends_with("kuasar_x 1\n"));
}

TEST_CASE("metrics server: one that does not read an answer holds nobody up") {
  Server f(300ms);
  f.text = std::string(4 << 20, 'x');
  const UniqueFd lazy = f.connect();
  REQUIRE(::write(lazy.get(), "GET /metrics HTTP/1.1\r\n\r\n", 25) == 25);
  CHECK(f.ask("GET /metrics HTTP/1.1\r\n\r\n").size() > (4U << 20));
  // Cut, in the end.
  CHECK(f.rest(lazy).size() <= (4U << 20) + 300);
}

TEST_CASE("D14 metrics server: silent connections make room for a scrape, the oldest first") {
  Server f;
  std::vector<UniqueFd> open;
  for (int i = 0; i < 40; ++i) open.push_back(f.connect());
  f.io.settle();
  CHECK(f.ask("GET /metrics HTTP/1.1\r\n\r\n").ends_with("kuasar_x 1\n"));
  CHECK(f.rest(open.front()).empty());
  // Those that came last are still served.
  const std::string_view request = "GET /metrics HTTP/1.1\r\n\r\n";
  REQUIRE(::write(open.back().get(), request.data(), request.size()) > 0);
  CHECK(f.rest(open.back()).ends_with("kuasar_x 1\n"));
}

TEST_CASE("metrics server: on the loopback, and a port that is taken is an error in words") {
  IoFixture io;
  const UniqueFd taken(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(taken.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  socklen_t size = sizeof address;
  REQUIRE(::getsockname(taken.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  REQUIRE(::listen(taken.get(), 1) == 0);
  MetricsAddress where;
  where.port = ntohs(address.sin_port);
  MetricsServer server(io.executor(), [] { return std::string(); });
  const Result<> refused = server.begin(where);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find(fmt::format("bind 127.0.0.1:{}", where.port)) !=
        std::string::npos);
  io.run(server.stop());
}

TEST_CASE("metrics: calls are counted by code and their times fall into buckets") {
  daemon::Metrics metrics;
  metrics.call_ended(call("Create", Code::kOk, 7ms));
  metrics.call_ended(call("Create", Code::kOk, 70ms));
  metrics.call_ended(call("Create", Code::kNotFound, 1ms));
  metrics.call_ended(call("Wait", Code::kOk, 1h));
  daemon::Gauges gauges;
  gauges.pods = {{"running", 3}, {"stopped", 0}};
  gauges.events_dropped = 5;
  gauges.keeper_version = "1.0";
  std::string text =
      metrics.text({.name = "runc-sandboxer", .version = "1.2", .starts = 4}, gauges);
  INFO(text);
  CHECK(has_line(text, R"(kuasar_rpc_handled_total{code="OK",method="Create",service="Task"} 2)"));
  CHECK(has_line(text,
                 R"(kuasar_rpc_handled_total{code="NOT_FOUND",method="Create",service="Task"} 1)"));
  CHECK(text.find(
            R"(kuasar_rpc_duration_seconds_bucket{method="Create",service="Task",le="0.01"} 2)") !=
        std::string::npos);
  CHECK(text.find(R"(kuasar_rpc_duration_seconds_count{method="Create",service="Task"} 3)") !=
        std::string::npos);
  CHECK(text.find(R"(method="Wait",service="Task"} 1)") != std::string::npos);
  CHECK(text.find(R"(seconds_count{method="Wait")") == std::string::npos);
  CHECK(has_line(text, R"(kuasar_pods{state="running"} 3)"));
  CHECK(has_line(text, "kuasar_events_dropped_total 5"));
  CHECK(has_line(text, "kuasar_starts_total 4"));
  CHECK(has_line(text, R"(kuasar_keeper_info{version="1.0"} 1)"));

  gauges.pods["running"] = 1;
  gauges.events_dropped = 6;
  gauges.keeper_version = "1.1";
  text = metrics.text({.name = "runc-sandboxer", .version = "1.2", .starts = 4}, gauges);
  CHECK(has_line(text, R"(kuasar_pods{state="running"} 1)"));
  CHECK(has_line(text, "kuasar_events_dropped_total 6"));
  CHECK(has_line(text, "kuasar_starts_total 4"));
  CHECK(text.find(R"(kuasar_keeper_info{version="1.0"})") == std::string::npos);
}

TEST_CASE("metrics: starts are counted in a file, whatever stands in it") {
  char name[] = "/tmp/kuasar-starts-XXXXXX";
  REQUIRE(::mkdtemp(name) != nullptr);
  const std::string file = std::string(name) + "/starts";
  CHECK(daemon::count_start(file) == 1);
  CHECK(daemon::count_start(file) == 2);
  CHECK(*read_file(file) == "2\n");
  REQUIRE(write_file(file, "half"));
  CHECK(daemon::count_start(file) == 1);
  fs::remove_all(name);
}

}  // namespace kuasar::test
