#include "os/clone_child.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace kuasar::os {
namespace {

bool arrange_fds(ChildPlan& plan) {
  int lowest = 3;
  for (int i = 0; i < plan.fd_count; ++i) {
    if (plan.fds[i].child_fd >= lowest) lowest = plan.fds[i].child_fd + 1;
  }
  // First out of the way of all targets, then into place: no mapping can overwrite another.
  for (int i = 0; i < plan.fd_count; ++i) {
    const int copy = ::fcntl(plan.fds[i].parent_fd, F_DUPFD_CLOEXEC, lowest);
    if (copy < 0) return false;
    plan.fds[i].parent_fd = copy;
  }
  const int null_copy = ::fcntl(plan.null_fd, F_DUPFD_CLOEXEC, lowest);
  if (null_copy < 0) return false;
  if (::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */) != 0) return false;
  for (int fd = 0; fd <= 2; ++fd) {
    if (::dup2(null_copy, fd) < 0) return false;
  }
  for (int i = 0; i < plan.fd_count; ++i) {
    if (::dup2(plan.fds[i].parent_fd, plan.fds[i].child_fd) < 0) return false;
  }
  return true;
}

__attribute__((no_sanitize("address", "undefined", "thread"))) int child_main(void* argument) {
  auto& plan = *static_cast<ChildPlan*>(argument);
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal != SIGKILL && signal != SIGSTOP) ::sigaction(signal, &action, nullptr);
  }
  plan.step = "set up descriptors for";
  if (!arrange_fds(plan)) {
    plan.err = errno;
    ::_exit(127);
  }
  if (plan.file_limit != nullptr) ::setrlimit(RLIMIT_NOFILE, plan.file_limit);
  ::setsid();
  ::umask(022);
  plan.step = "enter the working directory of";
  if (::chdir(plan.cwd) != 0) {
    plan.err = errno;
    ::_exit(127);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  plan.step = "execute";
  ::execve(plan.file, plan.argv, plan.envp);
  plan.err = errno;
  ::_exit(127);
}

// No handler of ours may run in the child while it shares our memory.
class AllSignalsBlocked {
 public:
  AllSignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &old_);
  }
  AllSignalsBlocked(const AllSignalsBlocked&) = delete;
  AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;
  ~AllSignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &old_, nullptr); }

 private:
  sigset_t old_;
};

}  // namespace

pid_t clone_child(ChildPlan& plan, void* stack, int& pidfd) {
  plan.err = 0;
  pidfd = -1;
  pid_t pid = -1;
  {
    const AllSignalsBlocked blocked;
    const int flags = (plan.new_pid_namespace ? CLONE_NEWPID : 0) |
                      (plan.new_mount_namespace ? CLONE_NEWNS : 0) | CLONE_VM | CLONE_VFORK |
                      CLONE_PIDFD | SIGCHLD;
    pid = ::clone(child_main, static_cast<char*>(stack) + kChildStackSize, flags, &plan, &pidfd);
    if (pid < 0) {
      plan.err = errno;
      plan.step = "clone for";
      return -1;
    }
  }
  if (plan.err == 0) return pid;
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED) != 0 && errno == EINTR) {
  }
  ::close(pidfd);
  pidfd = -1;
  return -1;
}

}  // namespace kuasar::os
