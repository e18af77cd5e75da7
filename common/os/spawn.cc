#include "os/spawn.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <sstream>

namespace kuasar::os {
namespace {

// RLIMIT_NOFILE as this process was started with; nothing until raise_file_limit().
std::optional<rlimit> original_file_limit;

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
      : base_(::mmap(nullptr, kChildStackSize, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0)) {}
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
    if (base_ != MAP_FAILED) ::munmap(base_, kChildStackSize);
  }
  bool valid() const { return base_ != MAP_FAILED; }
  void* base() const { return base_; }

 private:
  void* base_;
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

const rlimit* started_file_limit() {
  return original_file_limit ? &*original_file_limit : nullptr;
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
  if (spec.fds.size() > kMaxChildFds)
    return fail(Code::kInternal, "too many descriptors for a child");
  TRY(const std::string file, find_program(spec.program.empty() ? spec.argv[0] : spec.program));
  UniqueFd null_fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd) return fail_errno("open", "/dev/null");
  const std::vector<char*> argv = pointers(spec.argv);
  const std::vector<char*> envp = pointers(spec.env);
  const Stack stack;
  if (!stack.valid()) return fail_errno("mmap", "a child's stack");

  ChildPlan plan;
  plan.file = file.c_str();
  plan.argv = argv.data();
  plan.envp = envp.data();
  plan.cwd = spec.cwd.empty() ? "/" : spec.cwd.c_str();
  plan.null_fd = null_fd.get();
  plan.file_limit = started_file_limit();
  plan.fd_count = static_cast<int>(spec.fds.size());
  std::copy(spec.fds.begin(), spec.fds.end(), plan.fds);

  plan.new_pid_namespace = spec.new_pid_namespace;
  plan.new_mount_namespace = spec.new_mount_namespace;
  int pidfd = -1;
  const pid_t pid = clone_child(plan, stack.base(), pidfd);
  if (pid < 0) return fail(Error::from_errno_value(plan.err, plan.step, file));
  return Spawned{pid, UniqueFd(pidfd)};
}

}  // namespace kuasar::os
