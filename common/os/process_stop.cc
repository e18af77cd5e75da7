#include "os/process_stop.h"

#include <signal.h>

#include <filesystem>
#include <string>
#include <system_error>
#include <thread>

#include "base/files.h"
#include "os/pidfd.h"

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// Field 3 of /proc/PID/task/TID/stat, behind the name, which may hold anything (proc(5)).
bool is_stopped(const std::string& stat) {
  const std::size_t end_of_name = stat.rfind(')');
  if (end_of_name == stat.npos || end_of_name + 2 >= stat.size()) return false;
  const char state = stat[end_of_name + 2];
  return state == 'T' || state == 'Z' || state == 'X';
}

bool all_stopped(pid_t pid) {
  std::error_code ec;
  fs::directory_iterator it(fmt::format("/proc/{}/task", pid), ec);
  for (const fs::directory_iterator end; !ec && it != end; it.increment(ec)) {
    const Result<std::string> stat = read_file(it->path() / "stat");
    // A thread that is gone does nothing any more.
    if (stat && !is_stopped(*stat)) return false;
  }
  return !ec;
}

}  // namespace

Result<> stop_process(int pidfd, pid_t pid, std::chrono::milliseconds timeout) {
  CHECK_OK(pidfd_signal(pidfd, SIGSTOP));
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!all_stopped(pid)) {
    if (pidfd_exited(pidfd)) return fail(Code::kNotFound, "process {} has ended", pid);
    if (std::chrono::steady_clock::now() >= deadline) {
      continue_process(pidfd);
      return fail(Code::kDeadlineExceeded, "process {} does not stop within {} ms", pid,
                  timeout.count());
    }
    std::this_thread::sleep_for(50us);
  }
  return {};
}

void continue_process(int pidfd) {
  (void)pidfd_signal(pidfd, SIGCONT);
}

}  // namespace kuasar::os
