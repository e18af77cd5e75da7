#include "support/recording_spawner.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <cstdlib>
#include <utility>

#include "base/log.h"

namespace kuasar::test {

void RecordingSpawner::play(Playback playback) {
  playbacks_.push_back(std::move(playback));
}

Result<os::Process> RecordingSpawner::add(std::string key, pid_t pid) {
  auto child = std::make_shared<Child>();
  child->pid = pid;
  child->alive = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  children_[key] = std::move(child);
  return named(std::move(key));
}

Result<os::Process> RecordingSpawner::named(std::string key) const {
  const auto found = children_.find(key);
  if (found == children_.end()) return fail(Code::kNotFound, "no process is named {}", key);
  UniqueFd pidfd(::fcntl(found->second->alive.get(), F_DUPFD_CLOEXEC, 3));
  if (!pidfd) return fail_errno("eventfd", key);
  return os::Process{std::move(key), found->second->pid, std::move(pidfd)};
}

void RecordingSpawner::end(const std::string& key, os::ExitStatus status) {
  const auto found = children_.find(key);
  if (found == children_.end() || found->second->ended.is_set()) {
    log::error({}, "test defect: end() of {}, which does not run", key);
    std::abort();
  }
  found->second->status = status;
  ::eventfd_write(found->second->alive.get(), 1);
  found->second->ended.set();
}

Task<Result<os::Process>> RecordingSpawner::find(std::string key) {
  co_return named(std::move(key));
}

Task<Result<os::Process>> RecordingSpawner::spawn(std::string key, os::ProcessSpec spec) {
  if (children_.contains(key)) co_return named(std::move(key));
  Playback playback;
  if (!playbacks_.empty()) {
    playback = std::move(playbacks_.front());
    playbacks_.pop_front();
  }
  spawned_.push_back(RecordedSpawn{key, spec});
  if (playback.refusal) co_return fail(std::move(*playback.refusal));
  if (playback.effect) playback.effect(spec);
  Result<os::Process> process = add(key, next_pid_++);
  if (process && !playback.stays) {
    os::ExitStatus status;
    status.code = playback.exit_code;
    status.at = std::chrono::system_clock::now();
    end(key, status);
  }
  co_return process;
}

Task<Result<os::Process>> RecordingSpawner::adopt(std::string key, pid_t pid) {
  adopted_.emplace_back(key, pid);
  co_return add(std::move(key), pid);
}

Task<os::ExitStatus> RecordingSpawner::wait(const os::Process& process) {
  const auto found = children_.find(process.key);
  os::ExitStatus unknown;
  unknown.code = 255;
  unknown.known = false;
  if (found == children_.end()) co_return unknown;
  const std::shared_ptr<Child> child = found->second;
  if (!child->ended.is_set()) co_await child->ended.wait();
  if (!child->ended.is_set()) co_return unknown;
  co_return child->status;
}

void RecordingSpawner::acknowledge(const os::Process& process) {
  const auto found = children_.find(process.key);
  if (found != children_.end() && found->second->ended.is_set()) children_.erase(found);
}

}  // namespace kuasar::test
