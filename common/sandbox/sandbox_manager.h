#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/task_group.h"
#include "base/error.h"
#include "base/timeline.h"
#include "sandbox/orphan_collector.h"
#include "sandbox/sandbox.h"
#include "sandbox/state_store.h"
#include "task/pods.h"

namespace google::protobuf {
class Any;
}
namespace kuasar::task {
class TaskService;
}

namespace kuasar::sandbox {

/// What Controller.Start and Controller.Status tell of a sandbox.
struct SandboxStatus {
  bool ready = false;
  std::chrono::system_clock::time_point created_at;
  std::chrono::system_clock::time_point exited_at;
  /// JSON for `crictl inspectp`; only when asked for.
  std::string info;
  /// SELinux context of the pod's processes; empty without SELinux.
  std::string selinux_label;
};

/// A sandbox as its record has it.
struct SandboxRecord {
  state::v1::SandboxState state;
  /// Of its start; none when an earlier daemon started it.
  std::shared_ptr<const Timeline> timeline;
  /// Why it is left alone; empty for one that is not.
  std::string problem;
};

/// How a sandbox ended.
struct SandboxExit {
  std::uint32_t exit_status = 0;
  std::chrono::system_clock::time_point at;
};

/// The registry of a daemon's sandboxes and their state machine Created -> Running -> Stopped,
/// the same for every technology: it serializes the calls for each, keeps the records, fans the
/// exit out and recovers what an earlier daemon left. Lives on the io thread. stop() must have
/// ended before it is destroyed.
class SandboxManager : public task::Pods, public Suspects {
 public:
  SandboxManager(asio::any_io_executor executor, BlockingPool& pool, StateStore& store,
                 SandboxFactory& factory);
  /// The service that holds the containers of these sandboxes; set once, before any call.
  void set_tasks(task::TaskService& tasks) { tasks_ = &tasks; }

  // What the Controller asks for. Ids are checked here.
  // `arrived` is when the call came, for the timeline.
  Task<Result<>> create(state::v1::SandboxState record,
                        Timeline::Clock::time_point arrived = Timeline::Clock::now());
  Task<Result<SandboxStatus>> start(std::string id,
                                    Timeline::Clock::time_point arrived = Timeline::Clock::now());
  /// Unknown: success. The sandbox is NOTREADY before anything is taken away.
  Task<Result<>> stop(std::string id);
  Task<Result<>> shutdown(std::string id) override;
  /// `ended` is called once when the sandbox has stopped, with kUnavailable when the daemon stops
  /// (T16), and at once for one that is not there; not after what this returns is destroyed.
  [[nodiscard]] Event::Callback wait(const std::string& id,
                                     std::function<void(Result<SandboxExit>)> ended);
  Result<SandboxStatus> status(const std::string& id, bool verbose) const;
  /// What the kernel counts for the pod's cgroup, which is linux.cgroup_parent of its config: as
  /// Task.Stats, for all of the pod. kFailedPrecondition for a pod without one.
  Task<Result<google::protobuf::Any>> metrics(std::string id) const;
  /// The pod's OCI spec (pod_spec.h).
  Result<google::protobuf::Any> spec(const std::string& id) const;
  Result<> check_exists(const std::string& id) const;
  /// In order of ids.
  std::vector<SandboxRecord> records() const;
  /// What its start took; nothing for one that is not there, or that an earlier daemon started.
  std::shared_ptr<const Timeline> timeline_of(const std::string& id) const;
  /// How many there are, by state: "created", "running", "stopped", and "unusable" for those that
  /// are left alone.
  std::map<std::string, std::size_t> counts() const;

  // What TaskService asks for.
  Task<Result<task::Attachment>> attach(std::string sandbox_id, std::string container_id,
                                        oci::Spec spec, TimelinePtr timeline) override;
  Task<Result<>> detach(std::string sandbox_id, std::string container_id) override;
  Result<> save(const state::v1::ContainerState& record) override;
  Result<> save(const std::string& sandbox_id, const state::v1::Tombstones& stones) override;

  // What OrphanCollector asks for.
  std::vector<std::string> suspects(std::chrono::nanoseconds grace) const override;
  void vouch(const std::set<std::string>& known) override;

  /// Reads the state directory and takes everything over: sandboxes first, then containers.
  Task<Result<>> recover();
  /// From now on every wait() ends with kUnavailable. Changes are made until the Controller has
  /// stopped to bring any.
  void begin_stop();
  /// Ends the watchers; sandboxes stay as they are.
  Task<> stop_watching();

 private:
  struct Entry;
  using EntryPtr = std::shared_ptr<Entry>;

  Result<EntryPtr> find(const std::string& id) const;
  /// find() for a change: refuses one whose record we may not read.
  Result<EntryPtr> find_usable(const std::string& id) const;
  Result<> save_record(Entry& entry);
  static Result<SandboxExit> end_of(const Entry& entry);
  void watch(const EntryPtr& entry);
  Task<> await_death(EntryPtr entry);
  Task<Result<>> stop_locked(EntryPtr entry, SandboxExit exit);
  Task<> recover_sandbox(EntryPtr entry);
  Task<> recover_containers(EntryPtr entry);

  asio::any_io_executor executor_;
  BlockingPool& pool_;
  StateStore& store_;
  SandboxFactory& factory_;
  task::TaskService* tasks_ = nullptr;
  std::map<std::string, EntryPtr> entries_;
  TaskGroup watchers_;
  Event stopping_;
};

}  // namespace kuasar::sandbox
