#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "containerd/services/sandbox/v1/sandbox.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "support/census.h"

namespace kuasar::test {

/// What a program that has ended left: its exit code (128 + n for signal n) and its output.
struct Exited {
  int code = 0;
  std::string output;
};

/// The runc-sandboxer under test, started without containerd on a scratch directory of its own:
/// the hostile tests speak to its two sockets themselves. Not running after construction. Owns the
/// process, the directory and whatever the daemon mounted there; all of it goes with it. A case
/// cannot forget the census: one is taken at construction and compared at the end.
class LoneDaemon {
 public:
  LoneDaemon();
  ~LoneDaemon();
  LoneDaemon(const LoneDaemon&) = delete;
  LoneDaemon& operator=(const LoneDaemon&) = delete;

  /// Starts the daemon and waits until it is ready; throws std::runtime_error with its output when
  /// that takes more than 20 s or it ends instead.
  void start();
  /// SIGTERM and the wait for the end; throws when that takes more than 20 s.
  Exited stop();
  /// SIGKILL and the wait for the end.
  void kill();
  /// What the case leaves on purpose, a path or another part of a census' line: end() neither
  /// removes nor reports it.
  void leaves(std::string part) { left_on_purpose_.push_back(std::move(part)); }
  /// The end of the case, once: removes the pods that are still there, stops the daemon if it runs
  /// and checks that the machine is as it was before the construction. The destructor calls it
  /// unless the case has failed; a case whose own parts go first calls it before they do.
  void end();
  bool alive() const;

  /// Whether it was built with failpoints (common/base/failpoint.h); asked once it was started.
  bool has_failpoints() const;
  /// What happens when the daemon, or one started later, comes to the point: "kill" or "stop".
  void arm(const std::string& failpoint, const std::string& action) const;
  /// True when it was still armed.
  bool disarm(const std::string& failpoint) const;
  /// Waits until the daemon has ended by itself, at most 20 s.
  bool died();

  /// The keeper's pid; 0 when there is none.
  pid_t keeper() const;
  void kill_keeper() const;
  pid_t pid() const { return pid_; }

  std::filesystem::path listen() const { return scratch_ / "listen.sock"; }
  std::filesystem::path dir() const { return scratch_ / "state"; }
  std::filesystem::path task_socket() const { return dir() / "task.sock"; }
  std::filesystem::path config() const { return scratch_ / "runc.toml"; }
  const std::filesystem::path& scratch() const { return scratch_; }
  std::filesystem::path sandbox_file(const std::string& id) const {
    return dir() / "sandboxes" / id / "sandbox.json";
  }
  /// What all runs since construction wrote.
  std::string output() const;
  std::vector<std::string> arguments() const;
  CensusScope scope() const;

  /// Runs the daemon's executable to its end, at most 20 s; then it is killed and `code` is 137.
  Exited run_once(const std::vector<std::string>& arguments) const;

 private:
  bool is_left_on_purpose(const std::string& line) const;
  void remove_pods() const;
  /// The final census' differences.
  std::vector<std::string> remains() const;

  std::filesystem::path scratch_;
  pid_t pid_ = 0;
  Census before_;
  std::vector<std::string> left_on_purpose_;
  bool ended_ = false;
};

/// What differs from `before` after at most 10 s, but for the tombstones of a sandbox that stays.
std::vector<std::string> left_behind(const Census& before, const LoneDaemon& daemon);

/// A pod in the host's network, as CRI describes it to Controller.Create.
containerd::services::sandbox::v1::ControllerCreateRequest pod_request(const std::string& id);

/// A bundle as containerd lays it out, below `daemon.scratch()`, for a container that runs
/// `arguments` on the machine's own /usr, and the request that creates it.
containerd::task::v3::CreateTaskRequest task_request(const LoneDaemon& daemon,
                                                     const std::string& sandbox,
                                                     const std::string& id,
                                                     const std::vector<std::string>& arguments);

/// The parent cgroup that task_request names, in every hierarchy, for as long as this lives.
class CgroupParent {
 public:
  CgroupParent();
  ~CgroupParent();
  CgroupParent(const CgroupParent&) = delete;
  CgroupParent& operator=(const CgroupParent&) = delete;
  static std::string path();
};

/// Detaches every mount at or below a directory, as a reboot would.
void unmount_below(const std::filesystem::path& dir);

std::string read_whole(const std::filesystem::path& file);
void write_whole(const std::filesystem::path& file, const std::string& content);
/// For messages: every line on a line of its own, indented.
std::string listed(const std::vector<std::string>& lines);

/// How much memory a process has come to use since this was made.
class MemoryWatch {
 public:
  explicit MemoryWatch(pid_t pid);
  /// Growth of the resident set in MiB; a sanitizer's own needs are not counted.
  long growth_mib() const;

 private:
  long read_kib(const std::string& field) const;

  pid_t pid_;
  long before_kib_;
};

/// Polls until `condition()` or the deadline; returns its last value.
template <typename Condition>
bool eventually(Condition condition, std::chrono::milliseconds deadline = std::chrono::seconds(10));

void pause_briefly();

template <typename Condition>
bool eventually(Condition condition, std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) {
      return false;
    }
    pause_briefly();
  }
  return true;
}

}  // namespace kuasar::test
