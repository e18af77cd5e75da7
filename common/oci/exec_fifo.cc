#include "oci/exec_fifo.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/failpoint.h"
#include "base/unique_fd.h"
#include "os/process_stop.h"

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

// Ends when the byte is there, or the process has ended.
Result<> await_byte(int reader, int pidfd, const std::string& fifo,
                    std::chrono::milliseconds timeout) {
  pollfd watched[] = {{reader, POLLIN, 0}, {pidfd, POLLIN, 0}};
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    const int ready = ::poll(watched, 2, static_cast<int>(std::max(left, 0ms).count()));
    if (ready < 0 && errno != EINTR) return fail_errno("poll", fifo);
    if ((watched[0].revents & POLLIN) != 0) return {};
    if (ready > 0 && watched[1].revents != 0) {
      return fail(Code::kUnknown, "OCI runtime start failed: container process is already dead");
    }
    if (left <= 0ms) {
      return fail(Code::kDeadlineExceeded,
                  "OCI runtime start failed: the container's init does not come to {} within {} ms",
                  fifo, timeout.count());
    }
  }
}

Result<> take_byte(int reader, int pidfd, const std::string& fifo,
                   std::chrono::milliseconds timeout) {
  CHECK_OK(await_byte(reader, pidfd, fifo, timeout));
  if (::unlink(fifo.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", fifo);
  failpoint("runtime.start.taken");
  char byte = 0;
  [[maybe_unused]] const ssize_t got = ::read(reader, &byte, 1);
  return {};
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
  auto take = [fd = reader->get(), pidfd, fifo, timeout] {
    return take_byte(fd, pidfd, fifo, timeout);
  };
  Result<> taken = co_await pool.run(std::move(take));
  if (taken) holder.drop(name);
  co_return taken;
}

}  // namespace kuasar::oci
