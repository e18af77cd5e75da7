#pragma once

#include <google/protobuf/message.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "e2e/hostile_daemon.h"
#include "support/census.h"
#include "support/ttrpc_probe.h"

namespace kuasar::test {

/// Whom a Task call is about.
struct Subject {
  std::string id;
  /// Empty: the init.
  std::string exec;
  std::uint32_t pid = 0;
  std::uint32_t exec_pid = 0;
  /// As State said it, printed.
  std::string exited_at;
  containerd::task::v3::CreateTaskRequest create;
  bool reads_stdin = false;
  bool terminal = false;
  /// Where the container's log stood when the subject came.
  std::size_t log_from = 0;
};

/// How far a container or an exec has come.
enum class Stage { kNone, kCreated, kRunning, kPaused, kStopped };

/// A LoneDaemon with one pod, in which the calls that a daemon may die in are made. A container
/// here writes a line to a log of its own when it begins to run, at every SIGUSR1 and at the end of
/// its standard input; so does an exec (and at a new size of its terminal): what runs or arrives
/// twice is there twice. Either says "said" on its standard output when it begins. SIGTERM ends an
/// init with 7, an exec with 9.
class Bench {
 public:
  Bench();

  LoneDaemon& daemon() { return daemon_; }
  std::unique_ptr<TtrpcProbe> connect() const;

  Subject new_container(bool reads_stdin);
  /// From here on it is about an exec of the container that has not come yet.
  void name_exec(Subject& subject, bool terminal);
  /// Brings it there; throws what the daemon said when it does not come there.
  void bring(Subject& subject, Stage container, TtrpcProbe& probe);
  void bring_exec(Subject& subject, Stage exec, TtrpcProbe& probe);

  /// SIGTERM to what runs, and the wait for its end.
  static void stop(const Subject& subject, TtrpcProbe& probe);

  /// The request of Exec as bytes.
  static std::string exec_request(const Subject& subject);

  /// Where a Checkpoint is to write. In the bundle, with which it goes.
  static std::string image_dir(const Subject& subject);

  /// Everything that the outside sees of it, with names in place of ids, pids and times. Notes
  /// these in the subject.
  std::string snapshot(Subject& subject, TtrpcProbe& probe) const;
  /// The last snapshot, which is `wanted` unless that does not come within 5 s.
  std::string await_snapshot(Subject& subject, TtrpcProbe& probe, const std::string& wanted) const;
  std::string log(const Subject& subject) const;
  /// What stands in the log already is not of this subject.
  void skip_log(Subject& subject) const;
  void await_log(const Subject& subject, const std::string& line) const;

  /// An answer as text, with names in place of what differs from subject to subject. `response` is
  /// a message of its type.
  std::string describe(const Subject& subject, const TtrpcProbe::Reply& reply,
                       google::protobuf::Message& response) const;

  /// Ends and deletes what is left of the exec or, with none, of the container; throws when that
  /// does not go, or when a second Delete does not answer as the first one did.
  void clean_up(const Subject& subject, TtrpcProbe& probe) const;
  /// As containerd does when it gives a container up. Nothing for an exec.
  static void remove_bundle(const Subject& subject);
  /// What is left behind when all connections are closed, as text.
  std::string leftovers() const;

 private:
  std::filesystem::path log_file(const Subject& subject) const;
  std::string names_for(const Subject& subject, std::string text) const;
  std::string state(Subject& subject, bool of_exec, TtrpcProbe& probe) const;

  CgroupParent cgroup_;
  LoneDaemon daemon_;
  Census before_;
  int last_ = 0;
};

/// The payload of an OK answer; throws otherwise.
std::string payload_of(const TtrpcProbe::Reply& reply, const std::string& what);

template <typename Request>
Request request_for(const Subject& subject) {
  Request request;
  request.set_id(subject.id);
  if constexpr (requires { request.set_exec_id(subject.exec); }) request.set_exec_id(subject.exec);
  return request;
}

}  // namespace kuasar::test
