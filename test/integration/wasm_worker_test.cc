#include "support/wasm_worker.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/files.h"
#include "os/detached_mount.h"
#include "os/direct_spawner.h"
#include "os/fifo.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "support/filtered_child.h"
#include "support/io_fixture.h"
#include "support/wait.h"
#include "support/wasm_engine.h"
#include "worker/seccomp.h"
#include "zygote.h"

// kuasar-wasm-worker without a daemon: a zygote of this process makes confined children.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

using Fixture = WasmWorker;
using Running = WasmWorker::Running;
using Ended = WasmWorker::Ended;

}  // namespace

TEST_CASE("A wasm module runs in a child of a zygote", "[root][wasm]") {
  Fixture f;
  const Ended hello = f.run({"/hello.wasm"});
  CHECK(hello.refusal == "");
  CHECK(hello.out == "hello from wasm\n");
  CHECK(hello.err == "");
  CHECK(hello.code == 0);

  SECTION("exit codes are those of proc_exit") {
    CHECK(f.run({"/tool.wasm", "exit", "7"}).code == 7);
    CHECK(f.run({"/tool.wasm", "cat", "/no-such-file"}).code == 1);
  }
  SECTION("a trap is 134 and says why") {
    const Ended trap = f.run({"/tool.wasm", "print", "before", "trap"});
    CHECK(trap.code == 134);
    CHECK(trap.out == "before\n");
    CHECK(trap.err == "wasm trap: unreachable\n");
  }
  SECTION("arguments, environment and a function by name") {
    wasm::Plan plan = Fixture::plan({"/tool.wasm", "print", "a b", "environ"});
    plan.env = {"A=1", "B=two words"};
    CHECK(f.run_plan(plan).out == "a b\nA=1\nB=two words\n");
    CHECK(f.run({"/tool.wasm#answer"}).out == "the answer is 42\n");
    const Ended missing = f.run({"/tool.wasm#nothing"});
    CHECK(missing.code == 134);
    CHECK(missing.err == "wasm trap: the module has no function \"nothing\"\n");
  }
  SECTION("a read-only root") {
    const Ended put = f.run({"/tool.wasm", "put", "/new", "text"});
    CHECK(put.code == 1);
    CHECK(put.err == "put /new: Read-only file system\n");
  }
}

TEST_CASE("Children of one wasm zygote never share random numbers", "[root][wasm]") {
  Fixture f;
  std::set<std::string> seen;
  for (int i = 0; i < 10; ++i) {
    const Ended ended = f.run({"/tool.wasm", "random", "random"});
    REQUIRE(ended.code == 0);
    std::istringstream lines(ended.out);
    for (std::string line; std::getline(lines, line);) {
      CHECK(line.size() == 32);
      seen.insert(line);
    }
  }
  CHECK(seen.size() == 20);
}

TEST_CASE("What is no wasm module, or a bad one, is refused before it runs", "[root][wasm]") {
  Fixture f;
  const auto refused = [&](const std::string& module) { return f.run({module}).refusal; };
  CHECK(
      refused("/elf.wasm") ==
      "\"/elf.wasm\" is no WebAssembly module: it does not begin with \\0asm; this runtime handler "
      "runs nothing else");
  CHECK(refused("/text.wasm").find("it does not begin with \\0asm") != std::string::npos);
  CHECK(refused("/component.wasm").find("component") != std::string::npos);
  CHECK(refused("/none.wasm") == "module \"/none.wasm\": No such file or directory");
  CHECK(refused("/").find("not a regular file") != std::string::npos);
  CHECK(refused("/sockets.wasm").find("sock_open: WASI sockets are not supported") !=
        std::string::npos);
  for (const char* bad : {"/truncated.wasm", "/imports.wasm", "/locals.wasm"}) {
    INFO(bad);
    CHECK(refused(bad).find("is refused: ") != std::string::npos);
  }
  // A memory of 4 GiB may be had from a machine that overcommits; it is not touched.
  const Ended memory = f.run({"/memory.wasm"});
  CHECK((memory.code == 0 || memory.code == 134));
  CHECK(f.run({"/hello.wasm"}).code == 0);
}

TEST_CASE("A wasm child has confined itself before it reads the module", "[root][wasm]") {
  Fixture f;
  Result<Running> running = f.make(Fixture::plan({"/endless.wasm"}));
  REQUIRE(running);
  const pid_t pid = running->process.pid;
  CHECK(status_of(pid, "NSpid").ends_with("\t1"));
  CHECK(status_of(pid, "Uid") == "1000\t1000\t1000\t1000");
  CHECK(status_of(pid, "Groups") == "");
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    INFO(set);
    CHECK(status_of(pid, set) == "0000000000000000");
  }
  CHECK(status_of(pid, "NoNewPrivs") == "1");
  const std::string command = read_file(fmt::format("/proc/{}/cmdline", pid)).value_or("");
  CHECK(command.starts_with("/endless.wasm"));
  CHECK(command.find("kuasar") == std::string::npos);
  CHECK(status_of(pid, "Seccomp") == "2");
  // One mount: the root, and nothing of the host.
  const std::string mounts = read_file(fmt::format("/proc/{}/mountinfo", pid)).value_or("");
  INFO(mounts);
  CHECK(std::count(mounts.begin(), mounts.end(), '\n') == 1);
  int fds = 0;
  for ([[maybe_unused]] const auto& fd : fs::directory_iterator(fmt::format("/proc/{}/fd", pid)))
    ++fds;
  CHECK(fds == 4);

  // Its start function does not end; SIGTERM ends it although it is PID 1.
  Fixture::go(*running);
  REQUIRE(os::pidfd_signal(running->process.pidfd.get(), SIGTERM));
  CHECK(f.finish(std::move(*running)).code == 143);
}

TEST_CASE("A wasm child that nobody will start ends, and a zygote that died is replaced",
          "[root][wasm]") {
  Fixture f;
  Result<Running> running = f.make(Fixture::plan({"/hello.wasm"}));
  REQUIRE(running);
  running->control.reset();
  const Ended ended = f.finish(std::move(*running));
  CHECK(ended.code == 255);
  CHECK(ended.out == "");

  Result<Running> survivor = f.make(Fixture::plan({"/tool.wasm", "print", "on"}));
  REQUIRE(survivor);
  const Result<os::Process> zygote = f.io.run(f.spawner.find("zygote/wasmedge"));
  REQUIRE(zygote);
  REQUIRE(os::pidfd_signal(zygote->pidfd.get(), SIGKILL));
  f.io.run(f.spawner.wait(*zygote));
  CHECK(f.run({"/hello.wasm"}).out == "hello from wasm\n");
  Fixture::go(*survivor);
  CHECK(f.finish(std::move(*survivor)).out == "on\n");
}

// A daemon that takes over an exec lets it go without having heard of it, and drops the socket.
TEST_CASE("A wasm child that is let go while it loads runs, whatever became of its words",
          "[root][wasm]") {
  Fixture f;
  // Its "R" meets a closed socket.
  Result<Running> loading = f.begin(Fixture::plan({"/tool.wasm", "print", "ran"}));
  REQUIRE(loading);
  Fixture::go(*loading);
  loading->control.reset();
  const Ended early = f.finish(std::move(*loading));
  CHECK(early.code == 0);
  CHECK(early.out == "ran\n");

  // Its "R" is never read: the kernel resets the connection, which its next read tells.
  Result<Running> waiting = f.begin(Fixture::plan({"/tool.wasm", "print", "ran"}));
  REQUIRE(waiting);
  pollfd entry{waiting->control.get(), POLLIN, 0};
  REQUIRE(::poll(&entry, 1, 20000) == 1);
  const int process = waiting->process.pidfd.get();
  REQUIRE(os::pidfd_signal(process, SIGSTOP));
  REQUIRE(
      wait_until([&] { return status_of(waiting->process.pid, "State").starts_with("T"); }, 10s));
  Fixture::go(*waiting);
  waiting->control.reset();
  REQUIRE(os::pidfd_signal(process, SIGCONT));
  const Ended late = f.finish(std::move(*waiting));
  CHECK(late.code == 0);
  CHECK(late.out == "ran\n");

  // Nobody has let it go.
  Result<Running> forgotten = f.begin(Fixture::plan({"/tool.wasm", "print", "ran"}));
  REQUIRE(forgotten);
  entry.fd = forgotten->control.get();
  REQUIRE(::poll(&entry, 1, 20000) == 1);
  forgotten->control.reset();
  const Ended never = f.finish(std::move(*forgotten));
  CHECK(never.code == 255);
  CHECK(never.out == "");
}

TEST_CASE("What ends a process by default ends a wasm child, PID 1 of its namespace",
          "[root][wasm]") {
  Fixture f;
  for (const int signal :
       {SIGTERM, SIGRTMIN + 3, SIGRTMAX, SIGABRT, SIGTRAP, SIGXCPU, SIGXFSZ, SIGSYS}) {
    INFO("signal " << signal);
    Result<Running> running = f.make(Fixture::plan({"/endless.wasm"}));
    REQUIRE(running);
    Fixture::go(*running);
    REQUIRE(os::pidfd_signal(running->process.pidfd.get(), signal));
    const bool ended = f.io.run(os::pidfd_wait_for(running->process.pidfd.get(), 5s));
    CHECK(ended);
    if (!ended) REQUIRE(os::pidfd_signal(running->process.pidfd.get(), SIGKILL));
    CHECK(f.finish(std::move(*running)).code == 128 + signal);
  }
}

// In a process of its own: the filter stays.
TEST_CASE("The filter of a wasm child lets fcntl change nothing but the descriptor itself",
          "[wasm]") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd in(ends[0]);
  const UniqueFd out(ends[1]);
  const int wrong_calls = in_filtered_child(wasm::build_filter({}), [&] {
    const int fd = in.get();
    const auto fails = [&](int command, int argument) {
      return ::syscall(SYS_fcntl, fd, command, argument) == -1 && errno == EPERM;
    };
    const auto works = [&](int command, int argument) {
      return ::syscall(SYS_fcntl, fd, command, argument) != -1;
    };
    int wrong = 0;
    if (!fails(F_SETOWN, ::getpid())) wrong |= 1;
    if (!fails(F_SETSIG, SIGKILL)) wrong |= 2;
    if (!fails(F_SETFL, O_ASYNC | O_NONBLOCK)) wrong |= 4;
    if (!fails(F_SETPIPE_SZ, 1 << 20)) wrong |= 8;
    if (!works(F_SETFL, O_NONBLOCK) || !works(F_GETFL, 0)) wrong |= 16;
    if (!works(F_DUPFD_CLOEXEC, 3) || !works(F_DUPFD, 3)) wrong |= 32;
    if (!works(F_SETFD, FD_CLOEXEC) || !works(F_GETFD, 0)) wrong |= 64;
    // The other calls are still those of before.
    if (::syscall(SYS_getppid) != -1 || errno != ENOSYS) wrong |= 128;
    return wrong;
  });
  CHECK(wrong_calls == 0);
}

TEST_CASE("An engine that is not there is told in words", "[root][wasm]") {
  if (::geteuid() != 0) SKIP("namespaces need root");
  IoFixture io;
  os::DirectSpawner spawner;
  wasm::EngineZygote zygote(spawner, {"wasmedge", "libno-such-engine.so", "", ""},
                            worker_program());
  const Result<pid_t> child = io.run(zygote.make_child({}, {}));
  REQUIRE(!child);
  CHECK(child.error().code == Code::kFailedPrecondition);
  CHECK(child.error().message ==
        "wasm engine wasmedge: libno-such-engine.so: cannot open shared object file: No such file "
        "or directory");
}

}  // namespace kuasar::test
