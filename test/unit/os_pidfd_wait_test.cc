#include <sys/eventfd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdint>

#include "async/task_group.h"
#include "base/unique_fd.h"
#include "os/pidfd_wait.h"
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
