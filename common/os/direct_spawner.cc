#include "os/direct_spawner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "os/process_end.h"
#include "os/spawn.h"

namespace kuasar::os {
namespace {

constexpr auto kByPidfd = static_cast<idtype_t>(3 /* P_PIDFD */);

ExitStatus unknown_end() {
  return ExitStatus{255, std::chrono::system_clock::now(), false};
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
  if (!children_.contains(key)) {
    CO_TRY(UniqueFd pidfd, pidfd_open(pid));
    children_[key] = Spawned{pid, std::move(pidfd)};
  }
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
  const bool ended = co_await pidfd_wait(process.pidfd.get());
  if (!ended) co_return unknown_end();
  const ProcessEnd end = read_process_end(process.pidfd.get(), process.pid);
  if (!end.known) co_return unknown_end();
  co_return ExitStatus{end.code, std::chrono::system_clock::now(), true};
}

}  // namespace kuasar::os
