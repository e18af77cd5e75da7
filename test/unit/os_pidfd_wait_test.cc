#include <sys/eventfd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdint>
#include <memory>

#include "async/task_group.h"
#include "base/unique_fd.h"
#include "os/pidfd_wait.h"
#include "os/readable.h"
#include "support/io_fixture.h"

namespace kuasar::os {
namespace {

using namespace std::chrono_literals;

// Becomes readable when it is written to, as a pidfd does when its process ends.
struct FakePidfd {
  UniqueFd fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};

  void end() const { REQUIRE(::eventfd_write(fd.get(), 1) == 0); }
};

Task<> end_later(const FakePidfd* process) {
  co_await sleep_for(1ms);
  process->end();
}

}  // namespace

TEST_CASE("readable: a call comes once, and not after its end") {
  test::IoFixture io;
  int calls = 0;
  const auto count = [&calls] { ++calls; };
  auto process = std::make_unique<FakePidfd>();
  SECTION("when the process ends, whoever has its descriptor") {
    const WhenReadable watch(io.executor(), process->fd.get(), count);
    io.settle();
    CHECK(calls == 0);
    process->end();
    process.reset();
    CHECK(io.comes_to([&] { return calls > 0; }));
    io.settle();
  }
  SECTION("when it has ended") {
    process->end();
    const WhenReadable watch(io.executor(), process->fd.get(), count);
    CHECK(calls == 0);
    CHECK(io.comes_to([&] { return calls > 0; }));
  }
  SECTION("when it cannot be watched") {
    const WhenReadable watch(io.executor(), -1, count);
    CHECK(calls == 0);
    io.settle();
  }
  SECTION("not any more") {
    auto watch = std::make_unique<WhenReadable>(io.executor(), process->fd.get(), count);
    auto bad = std::make_unique<WhenReadable>(io.executor(), -1, count);
    process->end();
    watch.reset();
    bad.reset();
    io.settle();
    CHECK(calls == 0);
    return;
  }
  CHECK(calls == 1);
}

TEST_CASE("pidfd: a wait with a timeout ends with the process or with the time") {
  test::IoFixture io;
  const FakePidfd process;
  CHECK_FALSE(io.run(pidfd_wait_for(process.fd.get(), 5ms)));
  TaskGroup group(io.executor());
  group.spawn(end_later(&process));
  CHECK(io.run(pidfd_wait_for(process.fd.get(), 60s)));
  CHECK(io.run(pidfd_wait_for(process.fd.get(), 60s)));
  io.run(group.join());
}

}  // namespace kuasar::os
