#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>

#include "base/files.h"
#include "os/direct_spawner.h"
#include "os/pidfd.h"
#include "os/spawn.h"
#include "support/io_fixture.h"
#include "support/keeper_fixture.h"
#include "support/recording_spawner.h"

namespace kuasar::os {
namespace {

using test::IoFixture;

using test::KeeperFixture;

ProcessSpec shell(const std::string& script) {
  return test::shell_spec(script);
}

// What a real backend is told by its programs alone.
struct Real {
  void next_exits(int) {}
  void next_stays() {}
  static void kill(const Process& process) { REQUIRE(pidfd_signal(process.pidfd.get(), SIGKILL)); }
};

// Children of this process.
struct Direct : Real {
  IoFixture io;
  DirectSpawner spawner;
  void take_orphans() { REQUIRE(DirectSpawner::become_subreaper()); }
  static std::size_t children() { return test::children_of(::getpid()); }
};

// Children of a keeper.
struct Kept : Real {
  KeeperFixture keeper;
  IoFixture& io = keeper.io;
  keeper::KeeperSpawner spawner{keeper.connect()};
  void take_orphans() {}
  std::size_t children() const { return test::children_of(keeper.client->keeper_pid()); }
};

// The recording one that unit tests use: it plays what it is told, so that what is asked of keys,
// ends and waits is asked of it as well.
struct Played {
  IoFixture io;
  test::RecordingSpawner spawner;
  void next_exits(int code) { spawner.play({code, {}, {}, false}); }
  void next_stays() { spawner.play({0, {}, {}, true}); }
  void kill(const Process& process) {
    spawner.end(process.key, {137, std::chrono::system_clock::now(), true});
  }
};

// The contract of every Spawner.
template <typename Backend>
struct Fixture : Backend {
  using Backend::io;
  using Backend::spawner;

  Process spawn(ProcessSpec spec) {
    Result<Process> process = io.run(spawner.spawn("test", std::move(spec)));
    REQUIRE(process);
    return std::move(*process);
  }
  ExitStatus end_of(const Process& process) {
    const ExitStatus status = io.run(spawner.wait(process));
    spawner.acknowledge(process);
    return status;
  }
  // Output of a script through a pipe on its fd 1.
  std::string output_of(ProcessSpec spec) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    UniqueFd reader(ends[0]);
    UniqueFd writer(ends[1]);
    spec.fds.push_back({writer.get(), 1});
    const Process process = spawn(std::move(spec));
    writer.reset();
    std::string text;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(reader.get(), buffer, sizeof buffer)) > 0;) {
      text.append(buffer, static_cast<std::size_t>(n));
    }
    end_of(process);
    return text;
  }
};

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: exit codes and signals come back", "", Direct, Kept) {
  for (const int code : {0, 7, 255}) {
    const Process process = this->spawn(shell("exit " + std::to_string(code)));
    const ExitStatus status = this->end_of(process);
    CHECK(status.code == code);
    CHECK(status.known);
  }
  const Process sleeper = this->spawn(shell("exec sleep 100"));
  CHECK_FALSE(pidfd_exited(sleeper.pidfd.get()));
  REQUIRE(pidfd_signal(sleeper.pidfd.get(), SIGKILL));
  CHECK(this->end_of(sleeper).code == 137);
  CHECK(pidfd_signal(sleeper.pidfd.get(), 0).error().code == Code::kNotFound);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: a key names one process until it is acknowledged", "",
                          Direct, Kept, Played) {
  CHECK(this->io.run(this->spawner.find("test")).error().code == Code::kNotFound);
  this->next_exits(3);
  const Process first = this->spawn(shell("exit 3"));
  CHECK(this->io.run(this->spawner.wait(first)).code == 3);
  // Ended, asked twice, and never run again.
  CHECK(this->io.run(this->spawner.wait(first)).code == 3);
  const Process again = this->spawn(shell("exit 4"));
  CHECK(again.pid == first.pid);
  CHECK(this->io.run(this->spawner.wait(again)).code == 3);
  CHECK(this->io.run(this->spawner.find("test")).value().pid == first.pid);
  this->spawner.acknowledge(first);
  CHECK(this->io.run(this->spawner.find("test")).error().code == Code::kNotFound);
  this->next_stays();
  const Process next = this->spawn(shell("exec sleep 100"));
  this->spawner.acknowledge(next);
  CHECK(this->io.run(this->spawner.find("test")).value().pid == next.pid);
  CHECK_FALSE(pidfd_exited(next.pidfd.get()));
  this->kill(next);
  CHECK(this->end_of(next).code == 137);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: a program that cannot be executed leaves no process",
                          "", Direct, Kept) {
  const std::size_t before = this->children();
  ProcessSpec missing;
  missing.argv = {"/no/such/program"};
  const auto failed = this->io.run(this->spawner.spawn("x", missing));
  REQUIRE_FALSE(failed);
  CHECK(failed.error().message.find("/no/such/program") != std::string::npos);
  ProcessSpec nowhere = shell("true");
  nowhere.cwd = "/no/such/directory";
  const auto no_cwd = this->io.run(this->spawner.spawn("x", nowhere));
  REQUIRE_FALSE(no_cwd);
  CHECK(no_cwd.error().message.find("working directory") != std::string::npos);
  CHECK(this->io.run(this->spawner.find("x")).error().code == Code::kNotFound);
  CHECK(this->children() == before);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: a child has only the descriptors that are named", "",
                          Direct, Kept) {
  // Without O_CLOEXEC, so that only the spawner can keep it from the child.
  UniqueFd leaky(::open("/dev/zero", O_RDONLY));
  ProcessSpec spec = shell("readlink /proc/self/fd/0 /proc/self/fd/2; ls -l /proc/$$/fd");
  const std::string fds = this->output_of(std::move(spec));
  CHECK(fds.starts_with("/dev/null\n/dev/null\n"));
  CHECK(fds.find("/dev/zero") == std::string::npos);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: descriptors may cross over", "", Direct, Kept) {
  int a[2];
  int b[2];
  REQUIRE(::pipe2(a, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(b, O_CLOEXEC) == 0);
  ProcessSpec spec = shell("echo one >&3; echo two >&4");
  // Under each other's number in the parent, as far as that can be arranged.
  spec.fds = {{b[1], 3}, {a[1], 4}};
  const Process process = this->spawn(std::move(spec));
  this->end_of(process);
  char text[8] = {};
  CHECK(::read(b[0], text, 4) == 4);
  CHECK(std::string(text) == "one\n");
  CHECK(::read(a[0], text, 4) == 4);
  CHECK(std::string(text) == "two\n");
  for (const int fd : {a[0], a[1], b[0], b[1]}) ::close(fd);
}

TEMPLATE_TEST_CASE_METHOD(Fixture,
                          "spawner: a child starts with clean signals, its own session, umask 022",
                          "", Direct, Kept) {
  sigset_t block;
  ::sigemptyset(&block);
  ::sigaddset(&block, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &block, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  const std::string text = this->output_of(
      shell("grep -E 'SigBlk|SigIgn' /proc/self/status; umask; ps -o pid= -o sid= -p $$"));
  ::pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
  CHECK(text.find("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0022\n") == 0);
  const std::string ids = text.substr(text.rfind("0022\n") + 5);
  int pid = 0;
  int sid = 0;
  REQUIRE(std::sscanf(ids.c_str(), "%d %d", &pid, &sid) == 2);
  CHECK(pid == sid);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: an orphan comes to the subreaper and can be adopted",
                          "", Direct, Kept) {
  this->take_orphans();
  const std::string text = this->output_of(shell("sh -c 'sleep 0.2; exit 5' >/dev/null & echo $!"));
  const pid_t orphan = static_cast<pid_t>(std::stoi(text));
  Result<Process> adopted = this->io.run(this->spawner.adopt("orphan", orphan));
  REQUIRE(adopted);
  const ExitStatus status = this->end_of(*adopted);
  CHECK(status.code == 5);
  CHECK(status.known);
  CHECK(this->io.run(this->spawner.adopt("gone", orphan)).error().code == Code::kNotFound);
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: PID 1 of a new PID namespace", "[root]", Direct,
                          Kept) {
  ProcessSpec spec = shell("echo $$");
  spec.new_pid_namespace = true;
  spec.new_mount_namespace = true;
  CHECK(this->output_of(std::move(spec)) == "1\n");
}

TEMPLATE_TEST_CASE_METHOD(Fixture, "spawner: a cancelled wait reaps nothing", "", Direct, Kept,
                          Played) {
  this->next_stays();
  const Process sleeper = this->spawn(shell("exec sleep 100"));
  TaskGroup group(this->io.executor());
  ExitStatus status;
  group.spawn([](Spawner& s, const Process& p, ExitStatus& out) -> Task<> {
    out = co_await s.wait(p);
  }(this->spawner, sleeper, status));
  this->io.settle();
  group.cancel();
  this->io.run(group.join());
  CHECK_FALSE(status.known);
  this->kill(sleeper);
  CHECK(this->end_of(sleeper).code == 137);
}

TEST_CASE("pidfd: start time names a process") {
  const auto mine = process_start_time(::getpid());
  REQUIRE(mine);
  CHECK(*mine > 0);
  CHECK(process_start_time(::getpid()).value() == *mine);
  CHECK(process_start_time(0x7ffffff0).error().code == Code::kNotFound);
}

}  // namespace
}  // namespace kuasar::os
