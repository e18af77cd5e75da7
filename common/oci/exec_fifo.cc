#include "oci/exec_fifo.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "async/event.h"
#include "base/failpoint.h"
#include "base/unique_fd.h"
#include "os/pidfd.h"
#include "os/process_stop.h"
#include "os/readable.h"

namespace kuasar::oci {
namespace {

using namespace std::chrono_literals;

constexpr auto kStopTimeout = 100ms;

std::string fifo_of(const std::string& runtime_state) {
  return runtime_state + "/exec.fifo";
}

// Leaves the init stopped when it succeeds.
Result<UniqueFd> open_reader(int pidfd, pid_t pid, const std::string& fifo) {
  CHECK_OK(os::stop_process(pidfd, pid, kStopTimeout));
  UniqueFd reader(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
  if (reader) return reader;
  auto failed = fail_errno("open", fifo);
  os::continue_process(pidfd);
  return failed;
}

// Ends when the byte is there, or the process has ended. The container's CPU limit decides how long
// its init takes, so no thread waits for it.
Task<Result<>> await_byte(int reader, int pidfd, std::string fifo,
                          std::chrono::milliseconds timeout) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  Event came;
  const auto set = [&came] { came.set(); };
  const os::WhenReadable byte(executor, reader, set);
  const os::WhenReadable end(executor, pidfd, set);
  co_await came.wait_for(timeout);
  pollfd now{reader, POLLIN, 0};
  if (::poll(&now, 1, 0) == 1 && (now.revents & POLLIN) != 0) co_return Result<>();
  if (os::pidfd_exited(pidfd)) {
    co_return fail(Code::kUnknown, "OCI runtime start failed: container process is already dead");
  }
  co_return fail(Code::kDeadlineExceeded,
                 "OCI runtime start failed: the container's init does not come to {} within {} ms",
                 fifo, timeout.count());
}

Task<Result<>> take_byte(int reader, int pidfd, std::string fifo,
                         std::chrono::milliseconds timeout) {
  CO_CHECK(co_await await_byte(reader, pidfd, fifo, timeout));
  if (::unlink(fifo.c_str()) != 0 && errno != ENOENT) co_return fail_errno("unlink", fifo);
  failpoint("runtime.start.taken");
  char byte = 0;
  [[maybe_unused]] const ssize_t got = ::read(reader, &byte, 1);
  co_return Result<>();
}

}  // namespace

bool has_runc_fifo(const std::string& runtime_state) {
  struct stat st {};
  return ::access((runtime_state + "/state.json").c_str(), F_OK) == 0 &&
         ::lstat(fifo_of(runtime_state).c_str(), &st) == 0 && S_ISFIFO(st.st_mode);
}

Task<Result<>> let_init_go(os::FdHolder& holder, BlockingPool& pool, std::string name,
                           std::string runtime_state, const os::Process& process,
                           std::chrono::milliseconds timeout) {
  const std::string fifo = fifo_of(runtime_state);
  const int pidfd = process.pidfd.get();
  // An earlier daemon may have come so far.
  Result<UniqueFd> reader = holder.get(name);
  if (!reader) {
    auto open = [pidfd, pid = process.pid, fifo] { return open_reader(pidfd, pid, fifo); };
    reader = co_await pool.run(std::move(open));
    if (!reader) co_return fail(std::move(reader).error());
    failpoint("runtime.start.stopped");
    if (Result<> held = holder.hold(name, reader->get()); !held) {
      reader->reset();
      os::continue_process(pidfd);
      co_return held;
    }
  }
  failpoint("runtime.start.held");
  os::continue_process(pidfd);
  failpoint("runtime.start.resumed");
  Result<> taken = co_await take_byte(reader->get(), pidfd, fifo, timeout);
  if (taken) holder.drop(name);
  co_return taken;
}

}  // namespace kuasar::oci
