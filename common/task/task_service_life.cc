#include <filesystem>
#include <utility>

#include "base/log.h"
#include "containerd/task/v3/task.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/pidfd.h"
#include "task/task_service_parts.h"

// How containers come over a restart of the daemon, and how they go.

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;

constexpr auto kSweepInterval = 1s;
// Of one sandbox.
constexpr int kMaxTombstones = 16;

}  // namespace

Task<Result<api::DeleteResponse>> TaskService::remove(api::DeleteRequest request,
                                                      ttrpc::CallContext) {
  const Busy busy(*this);
  const Result<Target> found = find(request.id(), request.exec_id());
  if (!found) {
    Result<api::DeleteResponse> before = remembered(request.id(), request.exec_id());
    if (before) co_return before;
    co_return fail(found.error());
  }
  if (!found->process->exec.empty()) co_return co_await remove_exec(*found);
  const ContainerPtr container = found->container;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  if (container->phase == Phase::kRunning || container->phase == Phase::kPaused) {
    co_return fail(Code::kFailedPrecondition, "container {} is {}; kill it first", container->id,
                   phase_name(container->phase));
  }
  api::DeleteResponse response;
  response.set_pid(static_cast<std::uint32_t>(init_pid(*container)));
  if (!container->taken_away) CO_CHECK(co_await end_and_take_away(container));
  bury(container);
  fill_exit(response, *container);
  co_return response;
}

// Written down before anything is taken away: a Delete that is repeated, because its answer was
// lost with a daemon or with a connection, gets the same status again.
void TaskService::remember(const Container& container, const Process& process) {
  if (container.sandbox_id.empty()) return;
  state::v1::Tombstones& stones = tombstones_[container.sandbox_id];
  state::v1::Tombstone& stone = *stones.add_stones();
  stone.set_container_id(container.id);
  stone.set_exec_id(process.exec);
  stone.set_pid(driver_.host_pid(ref_of(container, process)));
  if (has_stopped(process)) {
    stone.set_exit_status(static_cast<std::uint32_t>(process.exit_status));
    *stone.mutable_exited_at() = to_timestamp(process.exited_at);
  }
  while (stones.stones_size() > kMaxTombstones) {
    stones.mutable_stones()->erase(stones.stones().begin());
  }
  if (Result<> saved = pods_.save(container.sandbox_id, stones); !saved) {
    log::warning({container.sandbox_id, container.id}, "{}", saved.error().message);
  }
}

Result<api::DeleteResponse> TaskService::remembered(const std::string& id,
                                                    const std::string& exec_id) const {
  for (const auto& [sandbox, stones] : tombstones_) {
    for (auto stone = stones.stones().rbegin(); stone != stones.stones().rend(); ++stone) {
      if (stone->container_id() != id || stone->exec_id() != exec_id) continue;
      api::DeleteResponse response;
      response.set_pid(static_cast<std::uint32_t>(stone->pid()));
      response.set_exit_status(stone->exit_status());
      if (stone->has_exited_at()) *response.mutable_exited_at() = stone->exited_at();
      return response;
    }
  }
  return fail(no_such_container(id));
}

void TaskService::recover_tombstones(const std::string& sandbox_id, state::v1::Tombstones stones) {
  if (stones.stones_size() > 0) tombstones_[sandbox_id] = std::move(stones);
}

Task<> TaskService::recover(std::string dir,
                            std::shared_ptr<const state::v1::ContainerState> record) {
  auto container = std::make_shared<Container>();
  from_record(*record, *container);
  container->dir = dir;
  containers_[container->id] = container;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  const Result<bool> alive = co_await driver_.recover(dir, record);
  if (!alive) {
    log::error({container->sandbox_id, container->id}, "recovery: {}", alive.error().message);
  }
  const bool lives = container->phase == Phase::kCreated || container->phase == Phase::kRunning;
  StdioPlan streams = stdio_plan(container, *container);
  container->stdio = Stdio::recover(watchers_, executor_, holder_, streams, lives);
  if (container->phase == Phase::kCreating || container->phase == Phase::kDeleting) {
    log::info({container->sandbox_id, container->id}, "was half {} when the sandboxer died",
              container->phase == Phase::kCreating ? "created: undone" : "deleted: finished");
    if (container->phase == Phase::kCreating) {
      undone_[container->id] = std::exchange(container->stdio, nullptr);
    }
    co_await drop_execs(container);
    if (Result<> removed = co_await take_away(container); !removed) {
      log::error({container->sandbox_id, container->id}, "{}", removed.error().message);
    }
    bury(container);
    co_return;
  }
  for (const state::v1::ExecState& exec : record->execs()) {
    Target target{container, container->execs.at(exec.id())};
    // A part of the record, which it keeps alive.
    std::shared_ptr<const state::v1::ExecState> part(record, &exec);
    co_await recover_exec(std::move(target), std::move(part));
  }
  co_await recover_init(container, alive.value_or(false));
}

void TaskService::connections_are_back(const HeldConnections& held) {
  for (const auto& [id, container] : containers_) {
    if (!container->peer || connected(*container)) continue;
    const auto found = held.find(container->peer->id());
    if (found == held.end()) {
      container->lost_since = std::chrono::steady_clock::now();
    } else if (found->second) {
      set_peer(*container, found->second);
    }
  }
  for (const auto& [id, stdio] : std::exchange(undone_, {})) stdio->close();
}

Task<> TaskService::recover_init(ContainerPtr container, bool alive) {
  if (Result<> begun = container->stdio->begin(); !begun && alive) {
    log::error({container->sandbox_id, container->id}, "{}", begun.error().message);
  }
  if (container->phase == Phase::kStopped) {
    container->stdio->process_ended(std::chrono::system_clock::now() - container->exited_at);
    container->exited.set();
    co_return;
  }
  if (alive) {
    if (container->phase == Phase::kRunning && driver_.frozen(container->id)) {
      container->phase = Phase::kPaused;
    }
    watch({container, container});
    watch_oom(container);
    co_return;
  }
  const os::ExitStatus unknown{255, std::chrono::system_clock::now(), false};
  co_await settle_exit(container, unknown);
}

std::vector<std::string> TaskService::containers_of(const std::string& sandbox_id) const {
  std::vector<std::string> ids;
  for (const auto& [id, container] : containers_) {
    if (container->sandbox_id == sandbox_id && !container->taken_away) ids.push_back(id);
  }
  return ids;
}

Task<Result<>> TaskService::remove_all(std::string sandbox_id) {
  Result<> first;
  for (const std::string& id : containers_of(sandbox_id)) {
    const auto found = containers_.find(id);
    if (found == containers_.end()) continue;
    Result<> removed = co_await take_from_pod(found->second);
    if (!removed && first) first = std::move(removed);
  }
  tombstones_.erase(sandbox_id);
  co_return first;
}

// containerd stops a pod's containers before the pod. One that it was just starting it does not.
Task<Result<>> TaskService::take_from_pod(ContainerPtr container) {
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone || container->taken_away) co_return Result<>();
  const pid_t pid = init_pid(*container);
  CO_CHECK(co_await end_and_take_away(container));
  if (connected(*container)) {
    container->taken_away = pid;
    container->phase = Phase::kStopped;
    container->stdio.reset();
    container->exited.set();
  } else {
    bury(container);
  }
  co_return Result<>();
}

Task<> TaskService::kill_all(std::string sandbox_id) {
  for (const std::string& id : containers_of(sandbox_id)) {
    if (Result<> killed = co_await driver_.kill_all(id); !killed) {
      log::error({sandbox_id, id}, "{}", killed.error().message);
    }
  }
}

Task<> TaskService::give_up(ContainerPtr container, std::string why) {
  const Busy busy(*this);
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone || container->taken_away || connected(*container)) co_return;
  log::warning({container->sandbox_id, container->id},
               "containerd has given it up ({}): killing and removing it", why);
  if (Result<> removed = co_await end_and_take_away(container); removed) {
    bury(container);
  } else {
    log::error({container->sandbox_id, container->id}, "{}", removed.error().message);
  }
}

// Empty: it is not, or not yet. One that is given up may have been replaced already, so it must not
// run on.
std::string TaskService::why_given_up(const Container& container,
                                      std::chrono::nanoseconds loss_patience) {
  if (connected(container)) return {};
  std::error_code ec;
  if (!std::filesystem::exists(container.bundle, ec) && !ec) {
    return fmt::format("connection and bundle {} are gone", container.bundle);
  }
  if (!container.lost_since) return {};
  // A containerd that was killed together with us looks alive until it has been torn down, and has
  // given nothing up: the next one connects.
  if (std::chrono::steady_clock::now() - *container.lost_since < loss_patience) return {};
  const ttrpc::PeerProcess& containerd = container.peer->process();
  if (containerd.pid == 0 || !os::process_lives(containerd.pid, containerd.start_time)) return {};
  return fmt::format("its connection was lost, and containerd, process {}, has not been restarted",
                     containerd.pid);
}

Task<> TaskService::sweep(std::chrono::nanoseconds loss_patience) {
  while (!stopping_.is_set()) {
    std::vector<ContainerPtr> lost;
    std::vector<ContainerPtr> forgotten;
    for (const auto& [id, container] : containers_) {
      if (connected(*container) || container->phase == Phase::kCreating) continue;
      (container->taken_away ? forgotten : lost).push_back(container);
    }
    for (const ContainerPtr& container : forgotten) bury(container);
    // All at once: the last of many must be dead as soon as the first.
    TaskGroup group(executor_);
    for (const ContainerPtr& container : lost) {
      std::string why = why_given_up(*container, loss_patience);
      if (!why.empty()) group.spawn(give_up(container, std::move(why)));
    }
    co_await group.join();
    co_await stopping_.wait_for(lost.empty() ? std::chrono::nanoseconds(kSweepInterval) : 100ms);
  }
}

Task<> TaskService::quiesce(std::chrono::nanoseconds timeout) {
  stopping_.set();
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (busy_ > 0 && std::chrono::steady_clock::now() < deadline) co_await sleep_for(5ms);
}

Task<> TaskService::stop() {
  stopping_.set();
  ended_ = true;
  driver_.stop_watching();
  watchers_.cancel();
  co_await watchers_.join();
}

}  // namespace kuasar::task
