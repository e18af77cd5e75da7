#include "sandbox/sandbox_manager.h"

#include <boost/json/serialize.hpp>
#include <optional>
#include <utility>

#include "base/failpoint.h"
#include "base/ids.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/cgroup.h"
#include "sandbox/pod_spec.h"
#include "task/cgroup_stats.h"
#include "task/convert.h"
#include "task/task_service.h"

namespace kuasar::sandbox {
namespace {

using Record = state::v1::SandboxState;
using std::chrono::steady_clock;
using std::chrono::system_clock;

Error not_found(const std::string& id) {
  return Error::make(Code::kNotFound, "sandbox {} not found", id.substr(0, kMaxIdLength));
}

// From a call's arrival, on a thread of gRPC's, until the io thread got to it.
void waited_for_io(Timeline& timeline, Timeline::Clock::time_point arrived) {
  timeline.end(timeline.begin("io thread", SpanKind::kWait, arrived));
}

std::string state_word(const Record& record) {
  switch (record.phase()) {
    case Record::RUNNING: return "running";
    case Record::STOPPED: return "stopped";
    default: return "created";
  }
}

Error stopping_error() {
  return Error::make(Code::kUnavailable, "the sandboxer is stopping; try again");
}

// The keys that containerd's own pods have (SandboxInfo, internal/cri/types/sandbox_info.go), as
// far as they are ours to know, then our record.
std::string verbose_info(const Record& record, const Sandbox* sandbox,
                         const std::optional<StateProblem>& problem) {
  Record rest = record;
  rest.clear_config();
  const bool running = record.phase() == Record::RUNNING;
  const std::string& id = record.id();
  boost::json::object info;
  info["sandboxID"] = id;
  info["pid"] = sandbox != nullptr ? sandbox->pid() : 0;
  info["processStatus"] = running ? "running" : state_word(record);
  info["netNamespaceClosed"] = !running;
  info["config"] = to_go_json(record.config());
  info["runtimeSpec"] = pod_spec(
      id, record.config(),
      sandbox != nullptr && running ? sandbox->namespaces() : std::vector<oci::NamespaceEntry>());
  info["kuasar"] = to_go_json(rest);
  if (problem) info["problem"] = problem->words;
  return boost::json::serialize(info);
}

}  // namespace

struct SandboxManager::Entry {
  /// Puts the configuration away: as messages it takes several times the memory, and it is asked
  /// for only now and then.
  void pack() {
    config = record.config().SerializeAsString();
    record.clear_config();
  }
  runtime::v1::PodSandboxConfig unpacked_config() const {
    runtime::v1::PodSandboxConfig message;
    (void)message.ParseFromString(config);
    return message;
  }
  Record whole_record() const {
    Record whole = record;
    *whole.mutable_config() = unpacked_config();
    return whole;
  }

  /// Without its config.
  Record record;
  std::string config;
  std::unique_ptr<Sandbox> sandbox;
  /// Set when the record cannot be used: the sandbox is listed as READY and left alone.
  std::optional<StateProblem> problem;
  /// Of its start; none when an earlier daemon started it.
  TimelinePtr timeline;
  AsyncMutex mutex;
  /// Set when the sandbox has stopped.
  Event stopped;
  bool gone = false;
  std::set<std::string> containers;
  /// Somebody waits for the end of its process.
  bool watched = false;
  /// Since when containerd's interest in it has been doubtful; not while it has containers and
  /// somebody waits for its end.
  steady_clock::time_point doubtful_since = steady_clock::now();
  /// Controller.Wait has been called.
  bool awaited = false;
  /// Of an earlier daemon, and containerd has not been asked about it yet.
  bool inherited = false;
};

SandboxManager::SandboxManager(asio::any_io_executor executor, BlockingPool& pool,
                               StateStore& store, SandboxFactory& factory)
    : executor_(executor),
      pool_(pool),
      store_(store),
      factory_(factory),
      watchers_(std::move(executor)) {}

Result<SandboxManager::EntryPtr> SandboxManager::find(const std::string& id) const {
  CHECK_OK(validate_id("sandbox_id", id));
  const auto found = entries_.find(id);
  if (found == entries_.end()) return fail(not_found(id));
  return found->second;
}

Result<SandboxManager::EntryPtr> SandboxManager::find_usable(const std::string& id) const {
  TRY(EntryPtr entry, find(id));
  if (entry->problem) return fail(Code::kFailedPrecondition, "{}", entry->problem->words);
  return entry;
}

Task<Result<google::protobuf::Any>> SandboxManager::metrics(std::string id) const {
  CO_TRY(const EntryPtr entry, find(id));
  const std::string parent = entry->unpacked_config().linux().cgroup_parent();
  if (parent.empty()) {
    co_return fail(
        Code::kFailedPrecondition,
        "sandbox {} has no cgroup of its own: linux.cgroup_parent of its config is empty", id);
  }
  auto read = [parent]() -> Result<google::protobuf::Any> {
    TRY(const std::vector<std::string> dirs, os::cgroups_at(parent));
    return task::cgroup_stats(dirs);
  };
  Result<google::protobuf::Any> stats = co_await pool_.run(std::move(read));
  if (!stats)
    co_return fail(std::move(stats).error().context("cgroup {} of sandbox {}", parent, id));
  co_return stats;
}

Result<> SandboxManager::check_exists(const std::string& id) const {
  TRY([[maybe_unused]] const EntryPtr entry, find(id));
  return {};
}

std::vector<SandboxRecord> SandboxManager::records() const {
  std::vector<SandboxRecord> all;
  for (const auto& [id, entry] : entries_) {
    all.push_back(
        {entry->whole_record(), entry->timeline, entry->problem ? entry->problem->words : ""});
  }
  return all;
}

std::shared_ptr<const Timeline> SandboxManager::timeline_of(const std::string& id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : found->second->timeline;
}

std::map<std::string, std::size_t> SandboxManager::counts() const {
  std::map<std::string, std::size_t> counts{
      {"created", 0}, {"running", 0}, {"stopped", 0}, {"unusable", 0}};
  for (const auto& [id, entry] : entries_) {
    ++counts[entry->problem ? "unusable" : state_word(entry->record)];
  }
  return counts;
}

Result<> SandboxManager::save_record(Entry& entry) {
  if (entry.sandbox) entry.sandbox->save(entry.record);
  return store_.save_sandbox(entry.whole_record());
}

Task<Result<>> SandboxManager::create(Record record, Timeline::Clock::time_point arrived) {
  const auto timeline = std::make_shared<Timeline>(arrived);
  const Span creating(timeline, "Controller.Create", arrived);
  waited_for_io(*timeline, arrived);
  CO_CHECK(validate_id("sandbox_id", record.id()));
  if (entries_.contains(record.id())) {
    co_return fail(Code::kAlreadyExists, "sandbox {} exists already", record.id());
  }
  Span checking(timeline, "check");
  CO_CHECK(factory_.check(record));
  checking.end();
  auto entry = std::make_shared<Entry>();
  entry->timeline = timeline;
  entry->record = std::move(record);
  entry->record.set_phase(Record::CREATED);
  *entry->record.mutable_created_at() = task::to_timestamp(system_clock::now());
  entry->sandbox = factory_.make(entry->record);
  entry->pack();
  const std::string id = entry->record.id();
  const Span writing(timeline, "directory, record");
  CO_CHECK(store_.create_sandbox(id));
  Result<> saved = failpoint_result("pod.dir");
  if (saved) saved = save_record(*entry);
  if (saved) saved = failpoint_result("pod.noted");
  if (!saved) {
    if (Result<> removed = store_.remove_sandbox(id); !removed) {
      log::error({id, {}}, "undo of a failed create: {}", removed.error().message);
    }
    co_return saved;
  }
  entries_[id] = entry;
  co_return Result<>();
}

Task<Result<SandboxStatus>> SandboxManager::start(std::string id,
                                                  Timeline::Clock::time_point arrived) {
  CO_TRY(const EntryPtr entry, find_usable(id));
  const TimelinePtr timeline = entry->timeline;
  const Span starting(timeline, "Controller.Start", arrived);
  if (timeline) waited_for_io(*timeline, arrived);
  Span locking(timeline, "pod's lock", SpanKind::kWait);
  const AsyncMutex::Lock lock = co_await entry->mutex.lock();
  locking.end();
  if (entry->gone) co_return fail(not_found(id));
  if (entry->record.phase() != Record::CREATED) {
    co_return fail(Code::kFailedPrecondition,
                   "sandbox {} has been started before; create a new one", id);
  }
  entry->record.set_phase(Record::STARTING);
  Span noting(timeline, "record");
  Result<> started = save_record(*entry);
  noting.end();
  if (started) started = failpoint_result("pod.starting");
  const auto config =
      std::make_shared<const runtime::v1::PodSandboxConfig>(entry->unpacked_config());
  if (started) started = co_await entry->sandbox->start(config, timeline);
  if (started) {
    const Span recording(timeline, "record");
    entry->record.set_phase(Record::RUNNING);
    started = save_record(*entry);
    if (started) started = failpoint_result("pod.running");
  }
  if (!started) {
    // T10: containerd 2.1 calls neither Stop nor Shutdown after a failed Start.
    log::warning({id, {}}, "start failed: {}", started.error().message);
    Result<> undone = co_await entry->sandbox->stop();
    if (undone) undone = store_.remove_sandbox(id);
    if (!undone) log::error({id, {}}, "undo of a failed start: {}", undone.error().message);
    entry->gone = true;
    entry->stopped.set();
    entries_.erase(id);
    co_return fail(std::move(started).error());
  }
  watch(entry);
  log::info({id, {}}, "sandbox {}/{} is running", config->metadata().namespace_(),
            config->metadata().name());
  co_return status(id, false);
}

void SandboxManager::watch(const EntryPtr& entry) {
  if (entry->watched || !entry->sandbox->has_process()) return;
  entry->watched = true;
  watchers_.spawn(await_death(entry));
}

// A sandbox that dies of itself takes its containers with it.
Task<> SandboxManager::await_death(EntryPtr entry) {
  const os::ExitStatus end = co_await entry->sandbox->wait_exit();
  if (stopping_.is_set() || !end.known || entry->stopped.is_set()) co_return;
  const std::string id = entry->record.id();
  log::warning({id, {}}, "the sandbox has ended by itself with {}", end.code);
  co_await tasks_->kill_all(id);
  const AsyncMutex::Lock lock = co_await entry->mutex.lock();
  if (entry->stopped.is_set()) co_return;
  entry->record.set_phase(Record::STOPPED);
  entry->record.set_exit_status(static_cast<std::uint32_t>(end.code));
  *entry->record.mutable_exited_at() = task::to_timestamp(end.at);
  if (Result<> saved = save_record(*entry); !saved) {
    log::error({id, {}}, "{}", saved.error().message);
  }
  entry->stopped.set();
}

Task<Result<>> SandboxManager::stop_locked(EntryPtr entry, SandboxExit exit) {
  const std::string id = entry->record.id();
  if (entry->record.phase() != Record::STOPPED) {
    // containerd asks for the status right after Stop: it flips before anything is taken away.
    entry->record.set_phase(Record::STOPPED);
    entry->record.set_exit_status(exit.exit_status);
    *entry->record.mutable_exited_at() = task::to_timestamp(exit.at);
    if (Result<> saved = save_record(*entry); !saved) {
      log::error({id, {}}, "{}", saved.error().message);
    }
  }
  CO_CHECK(co_await tasks_->remove_all(id));
  CO_CHECK(co_await entry->sandbox->stop());
  entry->sandbox->save(entry->record);
  if (!entry->stopped.is_set()) log::info({id, {}}, "stopped");
  entry->stopped.set();
  co_return Result<>();
}

Task<Result<>> SandboxManager::stop(std::string id) {
  Result<EntryPtr> found = find_usable(id);
  if (!found && found.error().code == Code::kNotFound) co_return Result<>();
  CO_TRY(const EntryPtr entry, std::move(found));
  const AsyncMutex::Lock lock = co_await entry->mutex.lock();
  if (entry->gone) co_return Result<>();
  const SandboxExit exit{0, system_clock::now()};
  co_return co_await stop_locked(entry, exit);
}

Task<Result<>> SandboxManager::shutdown(std::string id) {
  Result<EntryPtr> found = find_usable(id);
  if (!found && found.error().code == Code::kNotFound) co_return Result<>();
  CO_TRY(const EntryPtr entry, std::move(found));
  const AsyncMutex::Lock lock = co_await entry->mutex.lock();
  if (entry->gone) co_return Result<>();
  const SandboxExit exit{0, system_clock::now()};
  CO_CHECK(co_await stop_locked(entry, exit));
  auto remove = [this, id] { return store_.remove_sandbox(id); };
  CO_CHECK(co_await pool_.run(std::move(remove)));
  log::info({id, {}}, "removed");
  entry->gone = true;
  entries_.erase(id);
  co_return Result<>();
}

Event::Callback SandboxManager::wait(const std::string& id,
                                     std::function<void(Result<SandboxExit>)> ended) {
  Result<EntryPtr> found = find(id);
  if (!found) {
    ended(fail(std::move(found).error()));
    return {};
  }
  const EntryPtr& entry = *found;
  entry->awaited = true;
  return Event::when_any(executor_, {&entry->stopped, &stopping_},
                         [entry, ended = std::move(ended)] { ended(end_of(*entry)); });
}

Result<SandboxExit> SandboxManager::end_of(const Entry& entry) {
  // T16: anything but UNAVAILABLE turns the pod NOTREADY for good.
  if (!entry.stopped.is_set()) return fail(stopping_error());
  const Record& record = entry.record;
  if (entry.gone && record.phase() != Record::STOPPED) return fail(not_found(record.id()));
  return SandboxExit{record.exit_status(), task::from_timestamp(record.exited_at())};
}

Result<SandboxStatus> SandboxManager::status(const std::string& id, bool verbose) const {
  TRY(const EntryPtr entry, find(id));
  SandboxStatus status;
  const Record& record = entry->record;
  status.ready = entry->problem || record.phase() == Record::RUNNING;
  status.created_at = task::from_timestamp(record.created_at());
  status.exited_at = task::from_timestamp(record.exited_at());
  status.selinux_label = record.selinux_label();
  if (verbose) {
    status.info = verbose_info(entry->whole_record(), entry->sandbox.get(), entry->problem);
  }
  return status;
}

Result<google::protobuf::Any> SandboxManager::spec(const std::string& id) const {
  TRY(const EntryPtr entry, find_usable(id));
  return pack_spec(pod_spec(id, entry->unpacked_config(), entry->sandbox->namespaces()));
}

Task<Result<task::Attachment>> SandboxManager::attach(std::string sandbox_id,
                                                      std::string container_id, oci::Spec spec,
                                                      TimelinePtr timeline) {
  CO_TRY(const EntryPtr entry, find_usable(sandbox_id));
  Span locking(timeline, "pod's lock", SpanKind::kWait);
  const AsyncMutex::Lock lock = co_await entry->mutex.lock();
  locking.end();
  if (entry->gone) co_return fail(not_found(sandbox_id));
  if (entry->record.phase() != Record::RUNNING) {
    co_return fail(Code::kFailedPrecondition, "sandbox {} is not running", sandbox_id);
  }
  CO_CHECK(store_.create_container(sandbox_id, container_id));
  const std::string dir = store_.paths().container(sandbox_id, container_id);
  Result<task::Attachment> attached =
      co_await entry->sandbox->attach(container_id, dir, std::move(spec), timeline);
  // The pod's process may have come up with this container.
  watch(entry);
  const Span recording(timeline, "pod's record");
  Result<> saved = attached ? save_record(*entry) : Result<>();
  if (!attached || !saved) {
    if (attached) co_await entry->sandbox->detach(container_id);
    if (Result<> removed = store_.remove_container(sandbox_id, container_id); !removed) {
      log::error({sandbox_id, container_id}, "{}", removed.error().message);
    }
  }
  CO_CHECK(saved);
  if (attached) entry->containers.insert(container_id);
  co_return attached;
}

Task<Result<>> SandboxManager::detach(std::string sandbox_id, std::string container_id) {
  const auto found = entries_.find(sandbox_id);
  // Not under the mutex: stop() holds it while it removes the containers.
  if (found != entries_.end() && found->second->sandbox) {
    const EntryPtr entry = found->second;
    co_await entry->sandbox->detach(container_id);
    entry->containers.erase(container_id);
    entry->doubtful_since = steady_clock::now();
  }
  auto remove = [this, sandbox_id, container_id] {
    return store_.remove_container(sandbox_id, container_id);
  };
  co_return co_await pool_.run(std::move(remove));
}

Result<> SandboxManager::save(const state::v1::ContainerState& record) {
  return store_.save_container(record);
}

Result<> SandboxManager::save(const std::string& sandbox_id, const state::v1::Tombstones& stones) {
  return store_.save_tombstones(sandbox_id, stones);
}

std::vector<std::string> SandboxManager::suspects(std::chrono::nanoseconds grace) const {
  std::vector<std::string> ids;
  const auto now = steady_clock::now();
  for (const auto& [id, entry] : entries_) {
    if (entry->problem || entry->gone) continue;
    const auto doubtful = now - entry->doubtful_since;
    const bool unawaited = !entry->awaited && doubtful >= grace;
    const bool empty = entry->containers.empty() && doubtful >= 2 * grace;
    if (entry->inherited || unawaited || empty) ids.push_back(id);
  }
  return ids;
}

void SandboxManager::vouch(const std::set<std::string>& known) {
  for (const std::string& id : known) {
    const auto found = entries_.find(id);
    if (found == entries_.end()) continue;
    found->second->inherited = false;
    found->second->doubtful_since = steady_clock::now();
  }
}

Task<Result<>> SandboxManager::recover() {
  CO_TRY(const std::vector<LoadedSandbox> loaded, store_.load_sandboxes());
  for (const LoadedSandbox& one : loaded) {
    auto entry = std::make_shared<Entry>();
    entry->record.set_id(one.id);
    entry->inherited = true;
    if (one.problem && one.problem->kind == StateProblem::Kind::kUnsaved) {
      if (Result<> removed = store_.remove_sandbox(one.id); !removed) {
        log::error({one.id, {}}, "{}", removed.error().message);
      }
      continue;
    }
    if (one.problem) {
      log::error({one.id, {}}, "left alone: {}", one.problem->words);
      entry->problem = one.problem;
    } else {
      entry->record = *one.state;
      entry->sandbox = factory_.make(entry->record);
      entry->pack();
    }
    entries_[one.id] = entry;
  }
  const std::map<std::string, EntryPtr> all = entries_;
  for (const auto& [id, entry] : all) {
    if (!entry->problem) co_await recover_sandbox(entry);
  }
  co_return Result<>();
}

Task<> SandboxManager::recover_sandbox(EntryPtr entry) {
  const std::string id = entry->record.id();
  if (entry->record.phase() == Record::STARTING) {
    // containerd's Start has failed with the old daemon; it has forgotten the sandbox (T10).
    log::info({id, {}}, "was half started when the sandboxer died: undone");
    Result<> undone = co_await entry->sandbox->stop();
    if (undone) undone = store_.remove_sandbox(id);
    if (!undone) log::error({id, {}}, "{}", undone.error().message);
    entry->gone = true;
    entry->stopped.set();
    entries_.erase(id);
    co_return;
  }
  co_await recover_containers(entry);
  if (entry->record.phase() == Record::RUNNING) {
    if (Result<> recovered = co_await entry->sandbox->recover(); !recovered) {
      log::error({id, {}}, "recovery: {}", recovered.error().message);
    }
    watch(entry);
    co_return;
  }
  if (entry->record.phase() == Record::STOPPED && !entry->problem) {
    if (Result<> stopped = co_await entry->sandbox->stop(); !stopped) {
      log::error({id, {}}, "{}", stopped.error().message);
    }
    entry->stopped.set();
  }
}

Task<> SandboxManager::recover_containers(EntryPtr entry) {
  const std::string id = entry->record.id();
  const Result<std::vector<LoadedContainer>> loaded = store_.load_containers(id);
  if (!loaded) {
    log::error({id, {}}, "{}", loaded.error().message);
    co_return;
  }
  tasks_->recover_tombstones(id, store_.load_tombstones(id));
  for (const LoadedContainer& one : *loaded) {
    if (one.problem && one.problem->kind == StateProblem::Kind::kUnsaved) {
      if (Result<> removed = store_.remove_container(id, one.id); !removed) {
        log::error({id, one.id}, "{}", removed.error().message);
      }
    } else if (one.problem) {
      // A pod with a container that we cannot judge is not ours to change either.
      log::error({id, one.id}, "left alone, and its pod with it: {}", one.problem->words);
      entry->problem = one.problem;
    } else {
      auto record = std::make_shared<const state::v1::ContainerState>(*one.state);
      entry->containers.insert(one.id);
      co_await tasks_->recover(store_.paths().container(id, one.id), record);
    }
  }
}

void SandboxManager::begin_stop() {
  stopping_.set();
}

Task<> SandboxManager::stop_watching() {
  stopping_.set();
  watchers_.cancel();
  co_await watchers_.join();
}

}  // namespace kuasar::sandbox
