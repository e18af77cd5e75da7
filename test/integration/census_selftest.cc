#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "support/census.h"
#include "support/census_fixture.h"

namespace kuasar::test {
namespace {

using Leak = LeakyDaemon::Leak;

// The stage of every case: a directory and a daemon that are ours.
struct Stage {
  ScratchDir scratch;
  LeakyDaemon daemon{scratch.path() / "dir"};
  CensusScope scope;

  Stage() {
    scope.daemon = daemon.pid();
    scope.dirs = {scratch.path() / "dir"};
    scope.netns_dirs = {scratch.path() / "netns"};
    std::filesystem::create_directory(scope.dirs.front());
    std::filesystem::create_directory(scope.netns_dirs.front());
  }

  const std::filesystem::path& dir() const { return scope.dirs.front(); }
};

struct Case {
  std::string kind;
  std::string name;
  std::function<Planted(Stage&)> plant;
};

Planted leak_by_daemon(Stage& stage, Leak leak, const std::string& sought = "") {
  const pid_t made = stage.daemon.leak(leak);
  return {sought.empty() ? std::to_string(made) + " (" : sought,
          [&stage] { stage.daemon.make_good(); }};
}

Planted leak_orphan(Stage& stage, Leak leak, const std::string& sign) {
  const pid_t orphan = stage.daemon.leak(leak);
  return {sign, [orphan] { ::kill(orphan, SIGKILL); }};
}

std::vector<Case> cases() {
  std::vector<Case> all = {
      {"process", "a child of the daemon",
       [](Stage& stage) { return leak_by_daemon(stage, Leak::kChild); }},
      {"process", "an orphan that works in our directory",
       [](Stage& stage) {
         return leak_orphan(stage, Leak::kOrphanInDir, "works in " + stage.dir().native());
       }},
      {"zombie", "an unreaped child of the daemon",
       [](Stage& stage) { return leak_by_daemon(stage, Leak::kZombie); }},
      {"fd", "a pipe of the daemon",
       [](Stage& stage) { return leak_by_daemon(stage, Leak::kPipe, " of daemon -> pipe:["); }},
      {"fd", "a namespace held by the daemon",
       [](Stage& stage) {
         return leak_by_daemon(stage, Leak::kNamespaceFd, " of daemon -> net:[");
       }},
      {"thread", "a thread of the daemon",
       [](Stage& stage) { return leak_by_daemon(stage, Leak::kThread); }},
      {"unix socket", "an unnamed pair of the daemon",
       [](Stage& stage) { return leak_by_daemon(stage, Leak::kSocketPair, "unnamed of daemon"); }},
      {"unix socket", "a listener",
       [](Stage& stage) { return plant_unix_socket(stage.dir() / "leak.sock"); }},
      {"mount", "a tmpfs", [](Stage& stage) { return plant_mount(stage.dir() / "mnt"); }},
      {"nsfs pin", "a UTS namespace",
       [](Stage& stage) { return plant_namespace_pin(stage.dir() / "uts"); }},
      {"netns file", "a file of a netns",
       [](Stage& stage) { return plant_file(stage.scope.netns_dirs.front() / "cni-1"); }},
      {"file", "a file", [](Stage& stage) { return plant_file(stage.dir() / "left.json"); }},
      {"fifo", "a FIFO", [](Stage& stage) { return plant_fifo(stage.dir() / "stdout"); }},
      {"link", "a veth pair", [](Stage&) { return plant_veth(); }},
  };
  for (const std::filesystem::path& hierarchy : cgroup_hierarchies()) {
    all.push_back({"cgroup", "below " + hierarchy.native(),
                   [hierarchy](Stage&) { return plant_cgroup(hierarchy); }});
  }
  return all;
}

bool names(const std::vector<std::string>& lines, const std::string& kind,
           const std::string& sought) {
  return std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
    return line.starts_with(kind + " ") && line.find(sought) != std::string::npos;
  });
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) {
    text += "\n  " + line;
  }
  return text;
}

pid_t parent_of(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string skipped;
  pid_t parent = 0;
  stat >> skipped >> skipped >> skipped >> parent;
  return parent;
}

}  // namespace

TEST_CASE("census names a planted leak of every kind and is equal after its removal",
          "[root][census]") {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  for (const Case& item : cases()) {
    DYNAMIC_SECTION(item.kind << ": " << item.name) {
      Stage stage;
      const Census before = Census::take(stage.scope);
      Planted planted = item.plant(stage);
      const std::vector<std::string> lines = Census::diff(before, Census::take(stage.scope));
      INFO("looked for: " << planted.sought() << joined(lines));
      CHECK(names(lines, item.kind, planted.sought()));
      planted.remove();
      const std::vector<std::string> left = Census::wait_equal(before, stage.scope);
      INFO("left:" << joined(left));
      CHECK(left.empty());
    }
  }
}

TEST_CASE("census names an orphan in a namespace of its own", "[root][census]") {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  Stage stage;
  const Census before = Census::take(stage.scope);
  const pid_t pid = stage.daemon.leak(Leak::kOrphanInNamespace);
  const Planted orphan("has a uts namespace of its own", [pid] { ::kill(pid, SIGKILL); });
  if (parent_of(pid) != 1) {
    SKIP("orphans go to the subreaper " + std::to_string(parent_of(pid)) + " here, not to init");
  }
  const std::vector<std::string> lines = Census::diff(before, Census::take(stage.scope));
  INFO(joined(lines));
  CHECK(names(lines, "process", orphan.sought()));
}

TEST_CASE("census says that an object is gone", "[root][census]") {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  Stage stage;
  Planted file = plant_file(stage.dir() / "precious");
  const Census before = Census::take(stage.scope);
  file.remove();
  const std::vector<std::string> lines = Census::diff(before, Census::take(stage.scope));
  CHECK(lines == std::vector<std::string>{"gone: file " + file.sought()});
}

TEST_CASE("census leaves out one look of the daemon at its own memory, not two", "[root][census]") {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  CensusScope scope;
  scope.daemon = ::getpid();
  const Census before = Census::take(scope);
  const std::string own = "/proc/" + std::to_string(::getpid());
  const std::ifstream smaps(own + "/smaps");
  const std::ifstream statm(own + "/statm");
  const Census looking = Census::take(scope);
  CHECK(joined(Census::diff(before, looking)).empty());
  CHECK(joined(Census::diff(looking, before)).empty());
  const std::ifstream second(own + "/smaps");
  const std::ifstream other(own + "/maps");
  const std::vector<std::string> lines = Census::diff(before, Census::take(scope));
  CHECK(names(lines, "fd", own + "/smaps"));
  CHECK(names(lines, "fd", own + "/maps"));
}

TEST_CASE("census waits for a zombie that is reaped late", "[root][census]") {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  Stage stage;
  const Census before = Census::take(stage.scope);
  stage.daemon.leak(Leak::kZombie);
  CHECK_FALSE(Census::wait_equal(before, stage.scope, std::chrono::milliseconds(50)).empty());
  stage.daemon.make_good();
  CHECK(Census::wait_equal(before, stage.scope).empty());
}

TEST_CASE("census takes less than 100 ms", "[root][census]") {
  Stage stage;
  auto best = std::chrono::nanoseconds::max();
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    Census::take(stage.scope);
    best = std::min(best, std::chrono::nanoseconds(std::chrono::steady_clock::now() - start));
  }
  const auto best_ms = std::chrono::duration_cast<std::chrono::milliseconds>(best).count();
  INFO("best of 5: " << best_ms << " ms");
  CHECK(best_ms < 100);
}

}  // namespace kuasar::test
