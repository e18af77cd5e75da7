#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "async/event.h"
#include "task/driver.h"
#include "task/events.h"
#include "task/pods.h"

namespace kuasar::test {

/// A FAKE ContainerDriver: containers are entries of a map, their inits end when the test says
/// so. It writes down what it is asked. For unit tests of TaskService only.
class FakeDriver : public task::ContainerDriver {
 public:
  /// Calls in order: "create c1" ("create c1 by crun" with a BinaryName), "start c1", "kill_all
  /// c1", "signal c1 15", "remove c1".
  std::vector<std::string> calls;
  std::optional<Error> create_error;
  std::optional<Error> start_error;
  std::optional<Error> remove_error;
  /// start() does not return before this is set.
  Event* hold_start = nullptr;
  /// SIGKILL (signal or kill_all) ends the init with 137.
  bool killable = true;

  /// exec() does not return before this is set / fails so.
  Event* hold_exec = nullptr;
  std::optional<Error> exec_error;
  /// What resume_exec() answers.
  Result<> resumed;
  /// Writes into the standard output that an exec is given.
  std::string exec_says;

  /// Containers that are frozen.
  std::set<std::string> is_frozen;
  /// freeze() does not return before this is set.
  Event* hold_freeze = nullptr;
  std::vector<os::CgroupLimits> updates;
  std::vector<task::CheckpointPlan> checkpoints;
  std::optional<Error> resource_error;
  /// Deaths by the OOM killer, by container; oom() counts one up and calls what on_oom() was given.
  std::map<std::string, std::uint64_t> ooms;
  void oom(const std::string& container);

  void end_init(const std::string& container, int code) { end(container, code); }
  /// `name`: "c1" for the init, "c1/e1" for an exec.
  void end(const std::string& name, int code);

  Result<std::string> runtime_for(const std::string& binary) override;
  Task<Result<>> create(task::ContainerPlan plan, const task::Stdio& stdio) override;
  Task<Result<>> start(std::string container) override;
  Task<Result<>> exec(task::ExecPlan plan, const task::Stdio& stdio) override;
  void forget_exec(const task::ProcessRef& ref) override;
  Task<Result<>> resize(task::ProcessRef ref, std::shared_ptr<const task::Stdio> stdio,
                        std::uint16_t width, std::uint16_t height) override;
  Task<os::ExitStatus> wait_exit(task::ProcessRef ref) override;
  void on_exit(const asio::any_io_executor& executor, const task::ProcessRef& ref,
               std::function<void()> then) override;
  Result<> signal(const task::ProcessRef& ref, int signal) override;
  void reap(const task::ProcessRef& ref) override;
  Task<Result<>> signal_others(std::string container, int signal) override;
  Task<Result<>> kill_all(std::string container) override;
  Task<Result<>> freeze(std::string container) override;
  Task<Result<>> thaw(std::string container) override;
  bool frozen(const std::string& container) override { return is_frozen.contains(container); }
  Task<Result<>> update(std::string container, os::CgroupLimits limits) override;
  Task<Result<google::protobuf::Any>> stats(std::string container) override;
  std::uint64_t oom_kills(const std::string& container) override { return ooms[container]; }
  void on_oom(const asio::any_io_executor& executor, const std::string& container,
              std::function<void()> then) override;
  void stop_watching() override;
  Task<Result<>> checkpoint(task::CheckpointPlan plan) override;
  std::vector<pid_t> pids(const std::string& container) override;
  pid_t host_pid(const task::ProcessRef& ref) override;
  Task<Result<>> remove(std::string container) override;
  void save(const std::string& container, state::v1::ContainerState& record) override;
  Task<Result<bool>> recover(std::string dir,
                             std::shared_ptr<const state::v1::ContainerState> record) override;
  Task<Result<bool>> recover_exec(task::ProcessRef ref,
                                  state::v1::ProcessIdentity identity) override;
  Task<Result<>> resume_exec(task::ExecPlan plan) override;

 private:
  struct Fake {
    Event ended;
    int code = 0;
    std::function<void()> on_oom;
    Event::Callback on_exit;
  };
  /// By name.
  std::map<std::string, std::shared_ptr<Fake>> processes_;
};

/// FAKE pods: every sandbox id exists unless it is in `missing`.
class FakePods : public task::Pods {
 public:
  std::vector<std::string> calls;
  std::string missing = "no-such-pod";
  /// Every container's directory.
  std::string dir = "/nowhere";
  bool shared_pid = false;
  std::optional<Error> save_error;
  /// Phases saved, "c1:2" each.
  std::vector<std::string> saved;
  /// The OCI runtimes of the same records.
  std::vector<std::string> runtimes;

  Task<Result<task::Attachment>> attach(std::string sandbox_id, std::string container_id,
                                        oci::Spec spec, TimelinePtr timeline) override;
  Task<Result<>> detach(std::string sandbox_id, std::string container_id) override;
  Result<> save(const state::v1::ContainerState& record) override;
  Result<> save(const std::string& sandbox_id, const state::v1::Tombstones& stones) override;
};

/// Notes topics in order.
class RecordingSink : public task::EventSink {
 public:
  std::vector<std::string> topics;
  /// How often somebody has waited for containerd to take them all.
  int drains = 0;
  Task<bool> drain(std::chrono::nanoseconds) override {
    ++drains;
    co_return true;
  }
  void publish(std::string, std::string topic, const google::protobuf::MessageLite&) override {
    topics.push_back(std::move(topic));
  }
};

}  // namespace kuasar::test
