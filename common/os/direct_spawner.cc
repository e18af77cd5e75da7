#include "os/direct_spawner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <cstdint>

#include "base/log.h"
#include "os/pidfd.h"
#include "os/spawn.h"

namespace kuasar::os {
namespace {

// ioctl PIDFD_GET_INFO and its PIDFD_INFO_EXIT (Linux 6.15, include/uapi/linux/pidfd.h); Debian
// 12's headers do not know them yet.
struct PidfdInfo {
  std::uint64_t mask;
  std::uint64_t cgroupid;
  std::uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  std::int32_t exit_code;
  std::uint64_t spare[8];
};
constexpr std::uint64_t kInfoExit = 1U << 3;
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);

ExitStatus from_wait_status(int status) {
  ExitStatus exit;
  exit.at = std::chrono::system_clock::now();
  exit.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return exit;
}

constexpr auto kByPidfd = static_cast<idtype_t>(3 /* P_PIDFD */);

// Leaves the zombie for acknowledge().
ExitStatus exit_status(int pidfd) {
  siginfo_t info{};
  while (::waitid(kByPidfd, static_cast<id_t>(pidfd), &info, WEXITED | WNOWAIT) != 0) {
    if (errno == EINTR) continue;
    // Not our child: the kernel may still tell.
    PidfdInfo exited{};
    exited.mask = kInfoExit;
    if (::ioctl(pidfd, kGetInfo, &exited) == 0 && (exited.mask & kInfoExit) != 0) {
      return from_wait_status(exited.exit_code);
    }
    return ExitStatus{255, std::chrono::system_clock::now(), false};
  }
  ExitStatus exit;
  exit.at = std::chrono::system_clock::now();
  exit.code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
  return exit;
}

}  // namespace

Result<> DirectSpawner::become_subreaper() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) {
    return fail_errno("prctl", "PR_SET_CHILD_SUBREAPER");
  }
  return {};
}

Result<Process> DirectSpawner::named(std::string key) const {
  const auto found = children_.find(key);
  if (found == children_.end()) return fail(Code::kNotFound, "no process is named {}", key);
  UniqueFd pidfd(::fcntl(found->second.pidfd.get(), F_DUPFD_CLOEXEC, 3));
  if (!pidfd) return fail_errno("duplicate the pidfd of", key);
  return Process{std::move(key), found->second.pid, std::move(pidfd)};
}

Task<Result<Process>> DirectSpawner::spawn(std::string key, ProcessSpec spec) {
  if (!children_.contains(key)) {
    CO_TRY(Spawned child, spawn_process(spec));
    children_[key] = std::move(child);
  }
  co_return named(std::move(key));
}

Task<Result<Process>> DirectSpawner::find(std::string key) {
  co_return named(std::move(key));
}

Task<Result<Process>> DirectSpawner::adopt(std::string key, pid_t pid) {
  CO_TRY(UniqueFd pidfd, pidfd_open(pid));
  children_[key] = Spawned{pid, std::move(pidfd)};
  co_return named(std::move(key));
}

void DirectSpawner::acknowledge(const Process& process) {
  const auto found = children_.find(process.key);
  if (found == children_.end() || found->second.pid != process.pid) return;
  if (!pidfd_exited(found->second.pidfd.get())) return;
  siginfo_t info{};
  ::waitid(kByPidfd, static_cast<id_t>(found->second.pidfd.get()), &info, WEXITED | WNOHANG);
  children_.erase(found);
}

Task<ExitStatus> DirectSpawner::wait(const Process& process) {
  const int fd = ::dup(process.pidfd.get());
  if (fd < 0) {
    log::error({}, "{}", Error::from_errno("dup", process.key).message);
    co_return ExitStatus{255, std::chrono::system_clock::now(), false};
  }
  asio::posix::stream_descriptor watched(co_await asio::this_coro::executor, fd);
  while (!pidfd_exited(fd)) {
    boost::system::error_code ec;
    co_await watched.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
    if (ec && !pidfd_exited(fd)) {
      co_return ExitStatus{255, std::chrono::system_clock::now(), false};
    }
  }
  co_return exit_status(fd);
}

}  // namespace kuasar::os
