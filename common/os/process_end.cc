#include "os/process_end.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

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

ProcessEnd from_wait_status(int status) {
  return ProcessEnd{WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), true};
}

bool from_kernel(int pidfd, ProcessEnd& end) {
  PidfdInfo exited{};
  exited.mask = kInfoExit;
  if (::ioctl(pidfd, kGetInfo, &exited) != 0 || (exited.mask & kInfoExit) == 0) return false;
  end = from_wait_status(exited.exit_code);
  return true;
}

// Field 52 of a zombie is its wait status, for readers with ptrace rights (proc(5)).
bool from_stat(int pidfd, pid_t pid, ProcessEnd& end) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char text[1024];
  const ssize_t size = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  // Still unreaped, so the pid was this process's when its stat was read.
  if (size <= 0 || ::syscall(SYS_pidfd_send_signal, pidfd, 0, nullptr, 0) != 0) return false;
  text[size] = '\0';
  const char* at = std::strrchr(text, ')');
  if (at == nullptr || std::strncmp(at, ") Z", 3) != 0) return false;
  at += 2;
  for (int field = 3; field < 52 && at != nullptr; ++field) {
    at = std::strchr(at, ' ');
    if (at != nullptr) ++at;
  }
  if (at == nullptr) return false;
  end = from_wait_status(static_cast<int>(std::strtol(at, nullptr, 10)));
  return true;
}

}  // namespace

ProcessEnd read_process_end(int pidfd, pid_t pid) {
  constexpr auto kByPidfd = static_cast<idtype_t>(3 /* P_PIDFD */);
  ProcessEnd end;
  siginfo_t info{};
  while (::waitid(kByPidfd, static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
    if (errno == EINTR) continue;
    // Its parent may reap it between two questions: the first is asked again.
    if (from_kernel(pidfd, end) || from_stat(pidfd, pid, end) || from_kernel(pidfd, end))
      return end;
    return ProcessEnd{};
  }
  // Not ended after all.
  if (info.si_pid == 0) return ProcessEnd{};
  return ProcessEnd{info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status, true};
}

}  // namespace kuasar::os
