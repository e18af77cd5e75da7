#include "os/spawn.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <sstream>

namespace kuasar::os {
namespace {

constexpr std::size_t kStackSize = 64 * 1024;
constexpr int kMaxFds = 16;

// RLIMIT_NOFILE as this process was started with; nothing until raise_file_limit().
std::optional<rlimit> original_file_limit;

// What the child needs, made before the fork: it may not allocate.
struct ChildPlan {
  const char* file;
  char* const* argv;
  char* const* envp;
  const char* cwd;
  int null_fd;
  FdMapping fds[kMaxFds];
  int fd_count;
  const rlimit* file_limit;
  int err;
  const char* step;
};

bool arrange_fds(ChildPlan& plan) {
  int lowest = 3;
  for (int i = 0; i < plan.fd_count; ++i) lowest = std::max(lowest, plan.fds[i].child_fd + 1);
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

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

class Stack {
 public:
  Stack()
      : base_(::mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)) {}
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
    if (base_ != MAP_FAILED) ::munmap(base_, kStackSize);
  }
  bool valid() const { return base_ != MAP_FAILED; }
  void* top() const { return static_cast<char*>(base_) + kStackSize; }

 private:
  void* base_;
};

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

Result<> raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return fail_errno("getrlimit", "RLIMIT_NOFILE");
  original_file_limit = limit;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return fail_errno("setrlimit", "RLIMIT_NOFILE");
  return {};
}

Result<std::string> find_program(const std::string& program) {
  if (program.empty()) return fail(Code::kInvalidArgument, "no program is named");
  if (program.find('/') != std::string::npos) {
    if (::access(program.c_str(), X_OK) != 0) return fail_errno("execute", program);
    return program;
  }
  const char* path = std::getenv("PATH");
  std::istringstream dirs(path != nullptr ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
  for (std::string dir; std::getline(dirs, dir, ':');) {
    if (dir.empty()) continue;
    std::string candidate = dir + "/" + program;
    struct stat st {};
    if (::stat(candidate.c_str(), &st) == 0 && S_ISREG(st.st_mode) &&
        ::access(candidate.c_str(), X_OK) == 0) {
      return candidate;
    }
  }
  return fail(Code::kNotFound, "{} is not in PATH", program);
}

Result<Spawned> spawn_process(const ProcessSpec& spec) {
  if (spec.argv.empty()) return fail(Code::kInvalidArgument, "a process needs an argv");
  if (spec.fds.size() > kMaxFds) return fail(Code::kInternal, "too many descriptors for a child");
  TRY(const std::string file, find_program(spec.program.empty() ? spec.argv[0] : spec.program));
  UniqueFd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd) return fail_errno("open", "/dev/null");
  const std::vector<char*> argv = pointers(spec.argv);
  const std::vector<char*> envp = pointers(spec.env);
  const Stack stack;
  if (!stack.valid()) return fail_errno("mmap", "a child's stack");

  ChildPlan plan{};
  plan.file = file.c_str();
  plan.argv = argv.data();
  plan.envp = envp.data();
  plan.cwd = spec.cwd.empty() ? "/" : spec.cwd.c_str();
  plan.null_fd = null_fd.get();
  plan.file_limit = original_file_limit ? &*original_file_limit : nullptr;
  plan.fd_count = static_cast<int>(spec.fds.size());
  std::copy(spec.fds.begin(), spec.fds.end(), plan.fds);

  int pidfd = -1;
  pid_t pid = -1;
  {
    const AllSignalsBlocked blocked;
    const int flags = (spec.new_pid_namespace ? CLONE_NEWPID : 0) |
                      (spec.new_mount_namespace ? CLONE_NEWNS : 0) | CLONE_VM | CLONE_VFORK |
                      CLONE_PIDFD | SIGCHLD;
    pid = ::clone(child_main, stack.top(), flags, &plan, &pidfd);
  }
  if (pid < 0) return fail_errno("clone for", file);
  Spawned child{pid, UniqueFd(pidfd)};
  if (plan.err != 0) {
    siginfo_t info{};
    while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED) != 0 && errno == EINTR) {
    }
    return fail(Error::from_errno_value(plan.err, plan.step, file));
  }
  return child;
}

}  // namespace kuasar::os
