#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "os/spawner.h"

namespace kuasar::test {

/// What a test saw of one spawn(). The numbers in spec.fds are the caller's and may be closed.
struct RecordedSpawn {
  std::string key;
  os::ProcessSpec spec;
};

/// How one spawn() is played: what the program does, and how it ends.
struct Playback {
  int exit_code = 0;
  /// The program's side effects (writes a pid file, a log line...); runs inside spawn(), when the
  /// descriptors of the spec are still open.
  std::function<void(const os::ProcessSpec&)> effect;
  /// spawn() fails with this error instead.
  std::optional<Error> refusal;
  /// The process runs on until end().
  bool stays = false;
};

/// A Spawner that starts nothing: it records what it is asked to do and plays what the test told
/// it to. Without instructions a program does nothing and ends with 0. Processes have invented
/// pids above any real one; their "pidfd" is an eventfd that becomes readable at the end, so
/// pidfd_exited() tells the truth and pidfd_signal() fails. One io thread.
class RecordingSpawner : public os::Spawner {
 public:
  /// The next spawn() that has no playback yet is played so.
  void play(Playback playback);
  /// Ends a process that was spawned with `stays` or adopted.
  void end(const std::string& key, os::ExitStatus status);

  const std::vector<RecordedSpawn>& spawned() const { return spawned_; }
  /// Keys and pids of adopt() calls, which always succeed.
  const std::vector<std::pair<std::string, pid_t>>& adopted() const { return adopted_; }

  Task<Result<os::Process>> spawn(std::string key, os::ProcessSpec spec) override;
  Task<Result<os::Process>> find(std::string key) override;
  Task<Result<os::Process>> adopt(std::string key, pid_t pid) override;
  Task<os::ExitStatus> wait(const os::Process& process) override;
  void acknowledge(const os::Process& process) override;

 private:
  struct Child {
    pid_t pid = -1;
    UniqueFd alive;
    Event ended;
    os::ExitStatus status;
  };
  Result<os::Process> add(std::string key, pid_t pid);
  Result<os::Process> named(std::string key) const;

  std::list<Playback> playbacks_;
  std::vector<RecordedSpawn> spawned_;
  std::vector<std::pair<std::string, pid_t>> adopted_;
  std::map<std::string, std::shared_ptr<Child>> children_;
  pid_t next_pid_ = 5'000'000;
};

}  // namespace kuasar::test
