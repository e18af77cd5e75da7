#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "e2e/hostile_daemon.h"
#include "os/mount.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"

// Starting where something is in the way, stopping, wrong configuration, strangers as callers.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task = containerd::task::v3;
using Catch::Matchers::ContainsSubstring;

constexpr int kOk = 0;
constexpr int kNotFound = 5;
constexpr int kUnavailable = 14;
constexpr uid_t kStranger = 65534;

task::StateRequest state_of_nobody() {
  task::StateRequest request;
  request.set_id("nobody");
  return request;
}

bool serves(const LoneDaemon& daemon) {
  TtrpcProbe probe(daemon.task_socket());
  ControllerClient controller(daemon.listen());
  return probe.call("State", state_of_nobody()).code == kNotFound &&
         controller.status("nobody").code == kNotFound;
}

// The arguments of `daemon` with the value of one flag replaced.
std::vector<std::string> with(std::vector<std::string> arguments, const std::string& flag,
                              const std::string& value) {
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i) {
    if (arguments[i] == flag) {
      arguments[i + 1] = value;
    }
  }
  return arguments;
}

// Connects as another user and says whether the peer closed without an answer. Only the calling
// thread changes its ids: the system call is made directly, not through the C library, which would
// change every thread's.
struct StrangersView {
  bool connected = false;
  bool answered = false;
  bool closed = false;
};

StrangersView call_as_stranger(const fs::path& socket, const std::string& bytes) {
  StrangersView view;
  std::jthread stranger([&] {
    if (::syscall(SYS_setresgid, kStranger, kStranger, kStranger) != 0 ||
        ::syscall(SYS_setresuid, kStranger, kStranger, kStranger) != 0) {
      return;
    }
    try {
      TtrpcProbe probe(socket);
      view.connected = true;
      probe.send_some(bytes);
      view.answered = probe.read_frame(std::chrono::seconds(5)).has_value();
      view.closed = probe.end() == TtrpcProbe::End::kClosed;
    } catch (const std::exception&) {
      view.connected = false;
    }
  });
  stranger.join();
  return view;
}

}  // namespace

TEST_CASE("a second daemon on the same socket refuses and harms nothing", "[root][e2e][hostile]") {
  LoneDaemon daemon;
  daemon.start();
  REQUIRE(serves(daemon));
  SECTION("same socket, another directory") {
    const fs::path other = daemon.scratch() / "other";
    const Exited second = daemon.run_once(with(daemon.arguments(), "--dir", other.native()));
    INFO(second.output);
    CHECK(second.code != 0);
    CHECK(second.code < 128);
    CHECK_THAT(second.output, ContainsSubstring(daemon.listen().native()));
    CHECK_THAT(second.output, ContainsSubstring(std::to_string(daemon.pid())));
  }
  SECTION("same directory, another socket") {
    const fs::path other = daemon.scratch() / "other.sock";
    const Exited second = daemon.run_once(with(daemon.arguments(), "--listen", other.native()));
    INFO(second.output);
    CHECK(second.code != 0);
    CHECK(second.code < 128);
    CHECK_THAT(second.output, ContainsSubstring(daemon.dir().native()));
    CHECK_FALSE(fs::exists(other));
  }
  SECTION("the same of everything") {
    const Exited second = daemon.run_once(daemon.arguments());
    INFO(second.output);
    CHECK(second.code != 0);
    CHECK(second.code < 128);
  }
  CHECK(daemon.alive());
  CHECK(serves(daemon));
  CHECK(daemon.stop().code == 0);
}

TEST_CASE("what is no socket is not taken away", "[root][e2e][hostile]") {
  LoneDaemon daemon;
  write_whole(daemon.listen(), "precious");
  daemon.leaves(daemon.listen());
  const Exited run = daemon.run_once(daemon.arguments());
  INFO(run.output);
  CHECK(run.code != 0);
  CHECK(run.code < 128);
  CHECK_THAT(run.output, ContainsSubstring(daemon.listen().native()));
  CHECK(read_whole(daemon.listen()) == "precious");
  CHECK_FALSE(os::is_mountpoint(daemon.dir()));
}

TEST_CASE("the stale sockets of a killed daemon are taken over", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  {
    ControllerClient controller(daemon.listen());
    REQUIRE(controller.create(pod_request("survivor")).code == kOk);
    REQUIRE(controller.start("survivor").code == kOk);
  }
  daemon.kill();
  REQUIRE(fs::is_socket(daemon.listen()));
  daemon.start();
  CHECK(serves(daemon));
  ControllerClient controller(daemon.listen());
  CHECK(controller.status("survivor").response.state() == "SANDBOX_READY");
  CHECK(controller.shutdown("survivor").code == kOk);
}

TEST_CASE("SIGTERM ends an idle daemon with 0, and takes its keeper and its sockets along",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  CHECK(daemon.keeper() != 0);
  CHECK(daemon.stop().code == 0);
  CHECK_FALSE(fs::exists(daemon.listen()));
  CHECK_FALSE(fs::exists(daemon.task_socket()));
  CHECK_FALSE(os::is_mountpoint(daemon.dir()));
  CHECK(eventually([&] { return daemon.keeper() == 0; }));
}

TEST_CASE("SIGTERM takes the keeper along although idle clients are connected, when no pod is left",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  {
    ControllerClient controller(daemon.listen());
    REQUIRE(controller.create(pod_request("gone")).code == kOk);
    REQUIRE(controller.shutdown("gone").code == kOk);
  }
  TtrpcProbe idle(daemon.task_socket());
  REQUIRE(idle.call("State", state_of_nobody()).code == kNotFound);
  TtrpcProbe in_between(daemon.task_socket());
  REQUIRE(in_between.call("State", state_of_nobody()).code == kNotFound);
  REQUIRE(in_between.send(TtrpcProbe::request(3, "State", state_of_nobody()).substr(0, 7)));
  CHECK(daemon.stop().code == 0);
  CHECK(eventually([&] { return daemon.keeper() == 0; }));
  CHECK(idle.closed_within(std::chrono::seconds(10)));
  CHECK(in_between.closed_within(std::chrono::seconds(10)));
  CHECK_FALSE(fs::exists(daemon.listen()));
  daemon.start();
  CHECK(serves(daemon));
}

TEST_CASE("T16: SIGTERM ends Controller.Wait with UNAVAILABLE", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  ControllerClient controller(daemon.listen());
  REQUIRE(controller.create(pod_request("waiting")).code == kOk);
  REQUIRE(controller.start("waiting").code == kOk);
  std::vector<int> codes(20, kOk);
  std::vector<std::jthread> waiters;
  for (int& code : codes) {
    waiters.emplace_back([&controller, &code] { code = controller.wait("waiting").code; });
  }
  // Waits that have not arrived yet are refused with the same code.
  REQUIRE(controller.status("waiting").code == kOk);
  pause_briefly();
  CHECK(daemon.stop().code == 0);
  for (std::jthread& waiter : waiters) {
    waiter.join();
  }
  CHECK(codes == std::vector<int>(20, kUnavailable));
  daemon.start();
  ControllerClient again(daemon.listen());
  CHECK(again.status("waiting").response.state() == "SANDBOX_READY");
  CHECK(again.shutdown("waiting").code == kOk);
}

TEST_CASE("a configuration that is wrong is refused with file, line and remedy",
          "[root][e2e][hostile]") {
  LoneDaemon daemon;
  std::string content;
  std::string line;
  std::string remedy;
  SECTION("an unknown key") {
    content = "# first line\nruntimee = \"runc\"\n";
    line = ":2";
    remedy = "runtime";
  }
  SECTION("a value of another type") {
    content = "\n\nruntime = 5\n";
    line = ":3";
    remedy = "runtime";
  }
  SECTION("a value out of range") {
    content = "gate_width = 0\n";
    line = ":1";
    remedy = "1024";
  }
  SECTION("no TOML") {
    content = "runtime = \"runc\"\nthis is not TOML\n";
    line = ":2";
  }
  write_whole(daemon.config(), content);
  const Exited run = daemon.run_once(daemon.arguments());
  INFO(run.output);
  CHECK(run.code == 2);
  CHECK_THAT(run.output, ContainsSubstring(daemon.config().native() + line));
  CHECK_THAT(run.output, ContainsSubstring(remedy));
  CHECK_FALSE(fs::exists(daemon.listen()));
}

TEST_CASE("a drop-in is refused by its own name", "[root][e2e][hostile]") {
  LoneDaemon daemon;
  const fs::path dir = daemon.scratch() / "runc.d";
  fs::create_directory(dir);
  write_whole(dir / "10-ours.toml", "default_sysctl = true\n");
  const Exited run = daemon.run_once(daemon.arguments());
  INFO(run.output);
  CHECK(run.code == 2);
  CHECK_THAT(run.output, ContainsSubstring((dir / "10-ours.toml").native() + ":1"));
  CHECK_THAT(run.output, ContainsSubstring("default_sysctls"));
}

TEST_CASE("a wrong command line is refused with the nearest flag", "[root][e2e][hostile]") {
  LoneDaemon daemon;
  const Exited run = daemon.run_once({"--lisen", "/tmp/x.sock"});
  CHECK(run.code == 2);
  CHECK_THAT(run.output, ContainsSubstring("--listen"));
  CHECK(daemon.run_once({"--listen"}).code == 2);
  CHECK(daemon.run_once({"--log-level", "loud"}).code == 2);
  CHECK(daemon.run_once({"--help"}).code == 0);
  CHECK(daemon.run_once({"--version"}).code == 0);
}

TEST_CASE("a peer with another uid is refused by SO_PEERCRED", "[root][e2e][hostile]") {
  LoneDaemon daemon;
  daemon.start();
  REQUIRE(serves(daemon));
  // The modes that keep strangers out are loosened, so that only the check is left.
  for (const fs::path& socket : {daemon.listen(), daemon.task_socket()}) {
    struct stat status {};
    REQUIRE(::stat(socket.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
  }
  for (const fs::path& dir : {daemon.scratch(), daemon.dir()}) {
    REQUIRE(::chmod(dir.c_str(), 0711) == 0);
  }
  for (const fs::path& socket : {daemon.listen(), daemon.task_socket()}) {
    REQUIRE(::chmod(socket.c_str(), 0666) == 0);
    INFO(socket);
    const std::string hello = socket == daemon.listen()
                                  ? std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                                  : TtrpcProbe::request(1, "State", state_of_nobody());
    const StrangersView view = call_as_stranger(socket, hello);
    CHECK(view.connected);
    CHECK_FALSE(view.answered);
    CHECK(view.closed);
  }
  CHECK(serves(daemon));
}

}  // namespace kuasar::test
