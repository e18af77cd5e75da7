#include "oci/exec_fifo.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "async/blocking_pool.h"
#include "base/files.h"
#include "os/direct_spawner.h"
#include "os/local_fd_holder.h"
#include "os/pidfd.h"
#include "os/process_stop.h"
#include "support/io_fixture.h"
#include "support/wait.h"

// The start of a container without its runtime. A shell plays runc's init: it waits in the open of
// the FIFO, writes one byte, and goes on.

namespace kuasar::oci {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

struct FifoFixture {
  test::IoFixture io;
  BlockingPool pool{2};
  os::DirectSpawner spawner;
  os::LocalFdHolder holder;
  std::string dir;

  FifoFixture() {
    char name[] = "/tmp/kuasar-fifo-XXXXXX";
    dir = ::mkdtemp(name);
    REQUIRE(write_file(dir + "/state.json", "{}"));
    REQUIRE(::mkfifo(fifo().c_str(), 0622) == 0);
  }
  ~FifoFixture() { fs::remove_all(dir); }

  std::string fifo() const { return dir + "/exec.fifo"; }
  os::Process init(const std::string& before = "") {
    os::ProcessSpec spec;
    // 3 when the byte has no reader: what must never happen.
    spec.argv = {"sh", "-c",
                 before + "trap '' PIPE; exec 5>" + fifo() + "; printf 0 >&5 || exit 3; exit 42"};
    spec.env = {"PATH=/usr/bin:/bin"};
    auto process = io.run(spawner.spawn("init", std::move(spec)));
    REQUIRE(process);
    return std::move(*process);
  }
  Result<> go(const os::Process& process, std::chrono::milliseconds timeout = 10s) {
    return io.run(let_init_go(holder, pool, "start/c1", dir, process, timeout));
  }
};

}  // namespace

TEST_CASE_METHOD(FifoFixture, "exec fifo: the init goes on, the FIFO and the hold are gone") {
  CHECK(has_runc_fifo(dir));
  const os::Process process = init();
  const Result<> gone = go(process);
  INFO((gone ? std::string() : gone.error().message));
  REQUIRE(gone);
  CHECK(io.run(spawner.wait(process)).code == 42);
  CHECK_FALSE(fs::exists(fifo()));
  CHECK_FALSE(has_runc_fifo(dir));
  CHECK_FALSE(holder.get("start/c1"));
}

TEST_CASE_METHOD(FifoFixture, "exec fifo: an init that comes late is waited for") {
  const os::Process process = init("sleep 0.1; ");
  REQUIRE(go(process));
  CHECK(io.run(spawner.wait(process)).code == 42);
}

TEST_CASE_METHOD(FifoFixture, "exec fifo: a death before the reader was held lets nobody go") {
  const os::Process process = init();
  REQUIRE(os::stop_process(process.pidfd.get(), process.pid, 5s));
  {
    // What a daemon had open when it was killed.
    const UniqueFd lost(::open(fifo().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(lost);
  }
  REQUIRE(go(process));
  CHECK(io.run(spawner.wait(process)).code == 42);
}

TEST_CASE_METHOD(FifoFixture, "exec fifo: a death with the reader held: the next one goes on") {
  const os::Process process = init();
  REQUIRE(os::stop_process(process.pidfd.get(), process.pid, 5s));
  {
    const UniqueFd reader(::open(fifo().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(holder.hold("start/c1", reader.get()));
  }
  SECTION("still stopped") {}
  SECTION("continued, and the byte is written already") {
    os::continue_process(process.pidfd.get());
    REQUIRE(io.run(spawner.wait(process)).code == 42);
  }
  REQUIRE(go(process));
  CHECK(io.run(spawner.wait(process)).code == 42);
  CHECK_FALSE(fs::exists(fifo()));
}

TEST_CASE_METHOD(FifoFixture, "exec fifo: an init that is dead, or never comes, is an error") {
  SECTION("dead") {
    const os::Process process = init("exit 1; ");
    REQUIRE(io.run(spawner.wait(process)).code == 1);
    CHECK_FALSE(go(process));
  }
  SECTION("never comes") {
    const os::Process process = init("exec sleep 1000; ");
    const Result<> late = go(process, 50ms);
    REQUIRE_FALSE(late);
    CHECK(late.error().code == Code::kDeadlineExceeded);
    REQUIRE(os::pidfd_signal(process.pidfd.get(), 9));
    CHECK(io.run(spawner.wait(process)).code == 137);
  }
  CHECK(fs::exists(fifo()));
}

TEST_CASE_METHOD(FifoFixture, "exec fifo: crun's is not taken for runc's") {
  fs::remove(dir + "/state.json");
  REQUIRE(write_file(dir + "/status", "{}"));
  CHECK_FALSE(has_runc_fifo(dir));
}

}  // namespace kuasar::oci
