// The keeper at its limits: memory, descriptors, a daemon that does not read.

#include <sys/resource.h>
#include <sys/socket.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/keeper_fixture.h"
#include "support/process.h"

namespace kuasar::keeper {
namespace {

using std::chrono::seconds;
using test::dial;
using test::KeeperFixture;
using test::listener;
using test::pss_of;
using test::text_fd;
using test::wait_until;

// User and system time in clock ticks (proc(5), /proc/PID/stat fields 14 and 15).
long cpu_ticks(pid_t pid) {
  const std::string stat = test::read_text("/proc/" + std::to_string(pid) + "/stat");
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  const std::vector<std::string> all(std::istream_iterator<std::string>(fields), {});
  return std::stol(all.at(11)) + std::stol(all.at(12));
}

std::string mappings(pid_t pid) {
  return test::read_text("/proc/" + std::to_string(pid) + "/maps");
}

std::size_t open_files(pid_t pid) {
  const std::filesystem::directory_iterator files("/proc/" + std::to_string(pid) + "/fd");
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

void set_file_limit(pid_t pid, rlim_t soft) {
  rlimit limit{};
  REQUIRE(::prlimit(pid, RLIMIT_NOFILE, nullptr, &limit) == 0);
  limit.rlim_cur = soft == 0 ? limit.rlim_max : soft;
  REQUIRE(::prlimit(pid, RLIMIT_NOFILE, &limit, nullptr) == 0);
}

TEST_CASE_METHOD(KeeperFixture, "keeper: 100 connections and 100 children in a MiB, and no more") {
#ifdef __SANITIZE_ADDRESS__
  SKIP("the sanitizer's own memory is many times that");
#endif
  const std::string path = dir / "task.sock";
  connect();
  REQUIRE(client->accept("task", listener(path).get()));
  std::vector<UniqueFd> peers;
  for (int i = 0; i < 100; ++i) {
    peers.push_back(dial(path));
    REQUIRE(peers.back());
    // A daemon that does not read is told of some 70 and no more.
    client->drop("nothing");
    REQUIRE(client->hold("nothing", peers[0].get()));
  }
  os::ProcessSpec spec;
  spec.argv = {"sleep", "1000"};
  const std::string id(64, 'a');
  for (int i = 0; i < 100; ++i) {
    REQUIRE(client->spawn(id + "/init/create/" + std::to_string(i), spec));
  }
  // Every call sees what came before it.
  REQUIRE(wait_until(
      [&] {
        client->drop("nothing");
        REQUIRE(client->hold("nothing", peers[0].get()));
        return client->held("task/").size() == 100;
      },
      seconds(5)));
  const pid_t keeper = client->keeper_pid();
  const long pss = pss_of(keeper);
  WARN("keeper: PSS " << pss << " kB with 100 connections and 100 children");
  CHECK(pss > 0);
#ifdef NDEBUG
  CHECK(pss <= 1024);
#endif

  // Nothing is allocated for a call: whatever is asked, not a page is mapped.
  const std::string before = mappings(keeper);
  const auto own_before = os::memory_of(keeper);
  REQUIRE(own_before);
  const UniqueFd fd = text_fd("x");
  for (int i = 0; i < 2000; ++i) {
    const std::string name = id + "/" + std::to_string(i % 50);
    REQUIRE(client->hold(name, fd.get()));
    client->drop(name);
    CHECK_FALSE(client->status(id + "/init/create/" + std::to_string(i % 100)));
  }
  for (int i = 0; i < 100; ++i) {
    REQUIRE(client->spawn("more/" + std::to_string(i), spec));
    peers.push_back(dial(path));
  }
  for (int i = 0; i < 20; ++i) connect();
  CHECK(mappings(keeper) == before);
  // Of the table's pages. (Pages of the program come in as its code is reached: no matter.)
  const auto own = os::memory_of(keeper);
  REQUIRE(own);
  CHECK(own->anonymous <= own_before->anonymous + (64U << 10));
}

TEST_CASE_METHOD(KeeperFixture, "keeper: without a free descriptor it waits, and does not spin") {
  const std::string path = dir / "task.sock";
  connect();
  REQUIRE(client->accept("task", listener(path).get()));
  const pid_t keeper = client->keeper_pid();
  set_file_limit(keeper, open_files(keeper));
  const UniqueFd peer = dial(path);
  REQUIRE(peer);
  const Result<> refused = client->hold("one-too-many", text_fd("x").get());
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("not all descriptors arrived") != std::string::npos);

  // The condition is that it uses no processor while it can do nothing.
  const long ticks = cpu_ticks(keeper);
  CHECK_FALSE(wait_until([&] { return cpu_ticks(keeper) > ticks + 10; }, seconds(1)));
  CHECK(client->held("task/").empty());

  set_file_limit(keeper, 0);
  CHECK(wait_until(
      [&] {
        REQUIRE(client->hold("call", peer.get()));
        return client->held("task/").size() == 1;
      },
      seconds(5)));
  CHECK(client->keeper_pid() == keeper);
}

TEST_CASE_METHOD(KeeperFixture, "keeper: a daemon that does not read is told everything later") {
  const std::string path = dir / "task.sock";
  connect();
  REQUIRE(client->accept("task", listener(path).get()));
  const pid_t keeper = client->keeper_pid();
  // More than its socket takes.
  constexpr std::size_t kPeers = 800;
  std::vector<UniqueFd> peers(kPeers);
  std::thread dialler([&] {
    for (UniqueFd& peer : peers) peer = dial(path);
  });
  // The keeper accepts until there is no room: then its number of descriptors stays.
  std::size_t accepted = 0;
  int same = 0;
  CHECK(wait_until(
      [&] {
        const std::size_t now = open_files(keeper);
        same = now == accepted ? same + 1 : 0;
        accepted = now;
        return accepted > 40 && same == 20;
      },
      seconds(10)));
  CHECK(accepted < kPeers);
  const UniqueFd fd = text_fd("x");
  CHECK(wait_until(
      [&] {
        REQUIRE(client->hold("call", fd.get()));
        return client->held("task/").size() == kPeers;
      },
      seconds(20)));
  dialler.join();
  CHECK(client->keeper_pid() == keeper);
  connect();
  CHECK(client->held("task/").size() == kPeers);
}

}  // namespace
}  // namespace kuasar::keeper
