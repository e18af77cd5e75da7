#include "os/pidfd.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <string>

#include "base/files.h"

namespace kuasar::os {

Result<UniqueFd> pidfd_open(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) return fail_errno("pidfd_open", std::to_string(pid));
  return fd;
}

Result<> pidfd_signal(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) != 0) {
    return fail_errno("pidfd_send_signal", std::to_string(signal));
  }
  return {};
}

Result<UniqueFd> pidfd_getfd(int pidfd, int fd) {
  UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, fd, 0)));
  if (!copy) return fail_errno("pidfd_getfd", std::to_string(fd));
  return copy;
}

bool pidfd_exited(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

Result<unsigned long long> process_start_time(pid_t pid) {
  TRY(const std::string stat, read_file("/proc/" + std::to_string(pid) + "/stat"));
  // The command name may hold anything, also ") ": fields are counted from the last parenthesis.
  std::size_t at = stat.rfind(')');
  if (at == std::string::npos) return fail(Code::kInternal, "/proc/{}/stat is malformed", pid);
  // After ") " comes field 3; 19 more blanks lead to field 22.
  ++at;
  for (int field = 3; field <= 22; ++field) {
    at = stat.find(' ', at);
    if (at == std::string::npos) return fail(Code::kInternal, "/proc/{}/stat is short", pid);
    ++at;
  }
  unsigned long long value = 0;
  const auto parsed = std::from_chars(stat.data() + at, stat.data() + stat.size(), value);
  if (parsed.ec != std::errc{}) return fail(Code::kInternal, "/proc/{}/stat is malformed", pid);
  return value;
}

bool process_lives(pid_t pid, unsigned long long start_time) {
  const Result<UniqueFd> pidfd = pidfd_open(pid);
  if (!pidfd) return false;
  // Under the pidfd: who has the pid now had it when the descriptor was made, or has ended.
  const Result<unsigned long long> start = process_start_time(pid);
  return start && *start == start_time && !pidfd_exited(pidfd->get());
}

}  // namespace kuasar::os
