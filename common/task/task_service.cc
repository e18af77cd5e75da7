#include "task/task_service.h"

#include <google/protobuf/empty.pb.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "containerd/events/events.pb.h"
#include "containerd/runc/v1/options.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/bundle.h"
#include "task/convert.h"

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;
namespace ev = ::containerd::events;
using Empty = google::protobuf::Empty;

constexpr const char* kNamespace = "k8s.io";
// A Delete that is repeated (a lost answer, an impatient client) gets the same status again.
constexpr std::size_t kMaxTombstones = 1024;
// SIGKILL ends a process unless it hangs in the kernel.
constexpr auto kKillTimeout = 10s;
constexpr auto kSweepInterval = 1s;

Result<> check_create(const api::CreateTaskRequest& request) {
  CHECK_OK(validate_id("id", request.id()));
  const auto refuse = [](std::string_view field, std::string_view why) {
    return fail(Code::kUnimplemented, "{}: {}", field, why);
  };
  if (request.terminal()) return refuse("terminal", "containers with a tty are not supported yet");
  if (!request.stdin().empty()) {
    return refuse("stdin", "containers with an open standard input are not supported yet");
  }
  if (!request.checkpoint().empty()) return refuse("checkpoint", "restore is not supported yet");
  if (request.bundle().empty() || request.bundle().front() != '/') {
    return fail(Code::kInvalidArgument, "bundle \"{}\" is not an absolute path",
                request.bundle().substr(0, 200));
  }
  return {};
}

// Options are optional, and of a type that only the runc kind has.
Result<::containerd::runc::v1::Options> runc_options(const api::CreateTaskRequest& request) {
  ::containerd::runc::v1::Options options;
  if (request.options().type_url().empty()) return options;
  if (!unpack_any(request.options(), options)) {
    return fail(Code::kInvalidArgument, "options: {} is not a containerd.runc.v1.Options",
                request.options().type_url());
  }
  if (!options.binary_name().empty()) {
    return fail(Code::kUnimplemented,
                "options.BinaryName \"{}\" is not supported yet; set `runtime` in the sandboxer's "
                "configuration",
                options.binary_name());
  }
  return options;
}

std::vector<os::MountSpec> rootfs_mounts(const api::CreateTaskRequest& request) {
  std::vector<os::MountSpec> mounts;
  for (const auto& mount : request.rootfs()) {
    mounts.push_back(
        {mount.type(), mount.source(), {mount.options().begin(), mount.options().end()}});
  }
  return mounts;
}

Error no_such_container(const std::string& id) {
  return Error::make(Code::kNotFound, "container {} not found", id.substr(0, kMaxIdLength));
}

// Logs why a container cannot be. UNIMPLEMENTED must not leave Task.Create: containerd takes it for
// an old task service, tries task.v2 and shows that answer instead (task_manager.go:147-167).
Error refused_create(const std::string& sandbox_id, const std::string& id, Error error) {
  log::warning({sandbox_id, std::string_view(id).substr(0, kMaxIdLength)}, "create failed: {}",
               error.message);
  if (error.code == Code::kUnimplemented) error.code = Code::kFailedPrecondition;
  return error;
}

ProcessRef init_of(const Container& container) {
  return {container.id, ""};
}

template <typename Response>
void fill_exit(Response& response, const Container& container) {
  response.set_exit_status(static_cast<std::uint32_t>(container.exit_status));
  *response.mutable_exited_at() = to_timestamp(container.exited_at);
}

}  // namespace

class TaskService::Busy {
 public:
  explicit Busy(TaskService& service) : service_(service) { ++service_.busy_; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  ~Busy() { --service_.busy_; }

 private:
  TaskService& service_;
};

TaskService::TaskService(asio::any_io_executor executor, BlockingPool& pool,
                         ContainerDriver& driver, Pods& pods, EventSink& events)
    : executor_(executor),
      pool_(pool),
      driver_(driver),
      pods_(pods),
      events_(events),
      watchers_(std::move(executor)) {}

void TaskService::serve_on(ttrpc::Server& server) {
  const std::string service = "containerd.task.v3.Task";
  const auto add = [&]<typename Req, typename Resp>(
                       const char* method,
                       Task<Result<Resp>> (TaskService::*handler)(Req, ttrpc::CallContext),
                       ttrpc::AtStop at_stop = ttrpc::AtStop::kFinish) {
    server.add<Req, Resp>(
        service, method,
        [this, handler](Req request, ttrpc::CallContext context) {
          return (this->*handler)(std::move(request), std::move(context));
        },
        at_stop);
  };
  add("Create", &TaskService::create);
  add("Start", &TaskService::start);
  add("State", &TaskService::state);
  add("Wait", &TaskService::wait, ttrpc::AtStop::kCut);
  add("Kill", &TaskService::kill);
  add("Delete", &TaskService::remove);
  add("Connect", &TaskService::connect);
  add("Pids", &TaskService::pids);
  add("Shutdown", &TaskService::shutdown);
  for (const char* method :
       {"Pause", "Resume", "Checkpoint", "Exec", "ResizePty", "CloseIO", "Update", "Stats"}) {
    server.add_unimplemented(service, method,
                             fmt::format("{} is not supported by this version", method));
  }
}

void TaskService::publish(std::string topic, const google::protobuf::MessageLite& event) {
  events_.publish(kNamespace, std::move(topic), event);
}

void TaskService::save(const Container& container) {
  state::v1::ContainerState record = to_record(container);
  driver_.save(container.id, record);
  if (Result<> saved = pods_.save(record); !saved) {
    // What happened has happened: a full disk must not undo it. Recovery looks at the kernel.
    log::error({container.sandbox_id, container.id}, "the container's record is out of date: {}",
               saved.error().message);
  }
}

Result<TaskService::ContainerPtr> TaskService::find(const std::string& id,
                                                    const std::string& exec_id) const {
  CHECK_OK(validate_id("id", id));
  if (!exec_id.empty()) CHECK_OK(validate_id("exec_id", exec_id));
  const auto found = containers_.find(id);
  if (found == containers_.end()) return fail(no_such_container(id));
  if (!exec_id.empty()) {
    return fail(Code::kNotFound, "exec {} of container {} not found", exec_id, id);
  }
  return found->second;
}

Task<Result<api::CreateTaskResponse>> TaskService::create(api::CreateTaskRequest request,
                                                          ttrpc::CallContext context) {
  if (Result<> checked = check_create(request); !checked) {
    co_return fail(refused_create({}, request.id(), std::move(checked).error()));
  }
  if (stopping_.is_set()) co_return fail(Code::kUnavailable, "the sandboxer is stopping");
  const Busy busy(*this);
  if (containers_.contains(request.id())) {
    co_return fail(Code::kAlreadyExists, "container {} exists already", request.id());
  }
  auto container = std::make_shared<Container>();
  container->id = request.id();
  container->bundle = request.bundle();
  container->paths = {request.stdin(), request.stdout(), request.stderr()};
  container->peer = context.peer;
  containers_[container->id] = container;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();

  auto shared_request = std::make_shared<const api::CreateTaskRequest>(std::move(request));
  Result<> made = co_await make(container, shared_request);
  if (!made) {
    Error refused = refused_create(container->sandbox_id, container->id, std::move(made).error());
    // The answer is the first failure; what the undo cannot do it logs.
    if (Result<> undone = co_await take_away(container); !undone) {
      log::error({container->sandbox_id, container->id}, "undo of a failed create: {}",
                 undone.error().message);
    }
    container->gone = true;
    container->exited.set();
    containers_.erase(container->id);
    co_return fail(std::move(refused));
  }

  const auto pid = static_cast<std::uint32_t>(driver_.host_pid(init_of(*container)));
  log::debug({container->sandbox_id, container->id}, "created, pid {}", pid);
  ev::TaskCreate event;
  event.set_container_id(container->id);
  event.set_bundle(container->bundle);
  *event.mutable_rootfs() = shared_request->rootfs();
  event.mutable_io()->set_stdout(container->paths.stdout_path);
  event.mutable_io()->set_stderr(container->paths.stderr_path);
  event.set_pid(pid);
  publish("/tasks/create", event);
  watchers_.spawn(watch(container));
  api::CreateTaskResponse response;
  response.set_pid(pid);
  co_return response;
}

Task<Result<>> TaskService::make(ContainerPtr container,
                                 std::shared_ptr<const api::CreateTaskRequest> request) {
  CO_TRY(const ::containerd::runc::v1::Options options, runc_options(*request));
  auto open = [path = container->bundle] { return oci::open_bundle(path); };
  CO_TRY(oci::Bundle bundle, co_await pool_.run(std::move(open)));
  const std::string sandbox_id = bundle.sandbox_id;
  CO_TRY(Attachment attachment,
         co_await pods_.attach(sandbox_id, container->id, std::move(bundle.spec)));
  container->sandbox_id = sandbox_id;
  container->shared_pid_namespace = attachment.shared_pid_namespace;
  CO_CHECK(pods_.save(to_record(*container)));
  CO_TRY(container->stdio, Stdio::open(container->paths));

  ContainerPlan plan{
      container->id,           std::move(attachment.dir),  container->bundle + "/rootfs",
      rootfs_mounts(*request), std::move(attachment.spec), options.no_pivot_root(),
      options.no_new_keyring()};
  Result<> created = co_await driver_.create(std::move(plan), container->stdio);
  container->stdio.drop_process_ends();
  CO_CHECK(created);
  container->phase = Phase::kCreated;
  state::v1::ContainerState record = to_record(*container);
  driver_.save(container->id, record);
  co_return pods_.save(record);
}

Task<Result<api::StartResponse>> TaskService::start(api::StartRequest request, ttrpc::CallContext) {
  const Busy busy(*this);
  CO_TRY(const ContainerPtr container, find(request.id(), request.exec_id()));
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  if (container->phase != Phase::kCreated) {
    co_return fail(Code::kFailedPrecondition, "container {} is {}, only a created one can start",
                   container->id, phase_name(container->phase));
  }
  CO_CHECK(co_await driver_.start(container->id));
  container->phase = Phase::kRunning;
  save(*container);
  const auto pid = static_cast<std::uint32_t>(driver_.host_pid(init_of(*container)));
  log::debug({container->sandbox_id, container->id}, "started");
  ev::TaskStart event;
  event.set_container_id(container->id);
  event.set_pid(pid);
  publish("/tasks/start", event);
  api::StartResponse response;
  response.set_pid(pid);
  co_return response;
}

// Ends with the container's init. The container's mutex puts the end behind a Start that is still
// under way, so that nobody sees the exit before the start.
Task<> TaskService::watch(ContainerPtr container) {
  const os::ExitStatus status = co_await driver_.wait_exit(init_of(*container));
  if (ended_) co_return;
  container->init_end = status;
  container->init_ended.set();
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone || container->phase == Phase::kStopped) co_return;
  co_await settle_exit(container, status);
}

Task<> TaskService::settle_exit(ContainerPtr container, os::ExitStatus status) {
  if (container->shared_pid_namespace) {
    // T17: its children live on in the pod's PID namespace and hold its FIFOs.
    if (Result<> killed = co_await driver_.kill_all(container->id); !killed) {
      log::error({container->sandbox_id, container->id}, "{}", killed.error().message);
    }
  }
  if (!status.known) {
    log::warning({container->sandbox_id, container->id},
                 "its exit code is lost (it ended while no sandboxer was there); reported as 255");
  }
  container->exit_status = status.code;
  container->exited_at = status.at;
  container->phase = Phase::kStopped;
  save(*container);
  ev::TaskExit event;
  event.set_container_id(container->id);
  event.set_id(container->id);
  event.set_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  fill_exit(event, *container);
  publish("/tasks/exit", event);
  log::info({container->sandbox_id, container->id}, "exited with {}", status.code);
  container->exited.set();
}

Task<Result<api::StateResponse>> TaskService::state(api::StateRequest request,
                                                    ttrpc::CallContext context) {
  CO_TRY(const ContainerPtr container, find(request.id(), request.exec_id()));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  container->peer = context.peer;
  api::StateResponse response;
  response.set_id(container->id);
  response.set_bundle(container->bundle);
  response.set_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  response.set_status(to_status(container->phase));
  response.set_stdin(container->paths.stdin_path);
  response.set_stdout(container->paths.stdout_path);
  response.set_stderr(container->paths.stderr_path);
  if (container->phase == Phase::kStopped) fill_exit(response, *container);
  co_return response;
}

Task<Result<api::WaitResponse>> TaskService::wait(api::WaitRequest request,
                                                  ttrpc::CallContext context) {
  CO_TRY(const ContainerPtr container, find(request.id(), request.exec_id()));
  container->peer = context.peer;
  std::vector<const Event*> events = {&container->exited, &context.peer->closed_event()};
  co_await Event::wait_any(std::move(events));
  if (!container->exited.is_set()) co_return fail(Code::kUnavailable, "the connection is gone");
  // A container that was deleted before the waiter ran still has its status.
  if (container->gone && container->phase != Phase::kStopped &&
      container->phase != Phase::kDeleting) {
    co_return fail(no_such_container(container->id));
  }
  api::WaitResponse response;
  fill_exit(response, *container);
  co_return response;
}

Task<Result<Empty>> TaskService::kill(api::KillRequest request, ttrpc::CallContext) {
  CO_TRY(const ContainerPtr container, find(request.id(), request.exec_id()));
  if (request.signal() < 1 || request.signal() > 64) {
    co_return fail(Code::kInvalidArgument, "signal {} is not between 1 and 64", request.signal());
  }
  const int number = static_cast<int>(request.signal());
  if (container->phase == Phase::kCreating) {
    const AsyncMutex::Lock lock = co_await container->mutex.lock();
  }
  if (container->gone) co_return fail(no_such_container(container->id));
  if (container->phase == Phase::kStopped || container->phase == Phase::kDeleting) {
    co_return fail(Code::kNotFound, "container {}: process already finished", container->id);
  }
  if (request.all() && number == SIGKILL) {
    CO_CHECK(co_await driver_.kill_all(container->id));
    co_return Empty();
  }
  Result<> sent = driver_.signal(init_of(*container), number);
  if (!sent && sent.error().code == Code::kNotFound) {
    co_return fail(Code::kNotFound, "container {}: process already finished", container->id);
  }
  CO_CHECK(sent);
  if (request.all()) {
    for (const pid_t pid : driver_.pids(container->id)) {
      if (pid != driver_.host_pid(init_of(*container))) ::kill(pid, number);
    }
  }
  co_return Empty();
}

Task<Result<api::DeleteResponse>> TaskService::remove(api::DeleteRequest request,
                                                      ttrpc::CallContext) {
  const Busy busy(*this);
  const Result<ContainerPtr> found = find(request.id(), request.exec_id());
  api::DeleteResponse response;
  if (!found) {
    const auto grave =
        std::find_if(tombstones_.rbegin(), tombstones_.rend(),
                     [&](const Tombstone& stone) { return stone.id == request.id(); });
    if (!request.exec_id().empty() || grave == tombstones_.rend()) co_return fail(found.error());
    response.set_pid(static_cast<std::uint32_t>(grave->pid));
    response.set_exit_status(static_cast<std::uint32_t>(grave->exit_status));
    *response.mutable_exited_at() = to_timestamp(grave->exited_at);
    co_return response;
  }
  const ContainerPtr container = *found;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  if (container->phase == Phase::kRunning) {
    co_return fail(Code::kFailedPrecondition, "container {} is running; kill it first",
                   container->id);
  }
  response.set_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  CO_CHECK(co_await end_and_take_away(container));
  fill_exit(response, *container);
  co_return response;
}

// With the mutex held: ends what still runs, then removes the container and remembers its status.
Task<Result<>> TaskService::end_and_take_away(ContainerPtr container) {
  if (container->phase == Phase::kCreated || container->phase == Phase::kRunning) {
    CO_CHECK(co_await driver_.kill_all(container->id));
    const bool ended = co_await container->init_ended.wait_for(kKillTimeout);
    if (!ended) {
      co_return fail(Code::kDeadlineExceeded, "container {} does not end on SIGKILL within {} s",
                     container->id, kKillTimeout.count());
    }
    co_await settle_exit(container, *container->init_end);
  }
  const pid_t pid = driver_.host_pid(init_of(*container));
  container->phase = Phase::kDeleting;
  Result<> removed = co_await take_away(container);
  if (!removed) {
    container->phase = Phase::kStopped;
    co_return removed;
  }
  log::debug({container->sandbox_id, container->id}, "deleted");
  ev::TaskDelete event;
  event.set_container_id(container->id);
  event.set_id(container->id);
  event.set_pid(static_cast<std::uint32_t>(pid));
  fill_exit(event, *container);
  publish("/tasks/delete", event);
  tombstones_.push_back(
      {container->id, container->sandbox_id, pid, container->exit_status, container->exited_at});
  if (tombstones_.size() > kMaxTombstones) tombstones_.pop_front();
  bury(container);
  co_return Result<>();
}

void TaskService::bury(const ContainerPtr& container) {
  container->gone = true;
  container->exited.set();
  containers_.erase(container->id);
}

Task<Result<>> TaskService::take_away(ContainerPtr container) {
  CO_CHECK(co_await driver_.remove(container->id));
  container->stdio = Stdio();
  if (container->sandbox_id.empty()) co_return Result<>();
  co_return co_await pods_.detach(container->sandbox_id, container->id);
}

Task<Result<api::ConnectResponse>> TaskService::connect(api::ConnectRequest request,
                                                        ttrpc::CallContext context) {
  CO_TRY(const ContainerPtr container, find(request.id(), ""));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  container->peer = context.peer;
  api::ConnectResponse response;
  response.set_shim_pid(static_cast<std::uint32_t>(::getpid()));
  response.set_task_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  response.set_version("v3");
  co_return response;
}

Task<Result<api::PidsResponse>> TaskService::pids(api::PidsRequest request, ttrpc::CallContext) {
  CO_TRY(const ContainerPtr container, find(request.id(), ""));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  api::PidsResponse response;
  for (const pid_t pid : driver_.pids(container->id)) {
    response.add_processes()->set_pid(static_cast<std::uint32_t>(pid));
  }
  // T7: an empty list makes a restarting containerd delete the task.
  if (response.processes().empty()) {
    response.add_processes()->set_pid(
        static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  }
  co_return response;
}

// containerd sends it after a failed create, newer ones after every Delete: the daemon serves all
// pods and stays.
Task<Result<Empty>> TaskService::shutdown(api::ShutdownRequest, ttrpc::CallContext) {
  co_return Empty();
}

Task<> TaskService::recover(std::string dir,
                            std::shared_ptr<const state::v1::ContainerState> record) {
  auto container = std::make_shared<Container>();
  from_record(*record, *container);
  containers_[container->id] = container;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  const Result<bool> alive = co_await driver_.recover(dir, record);
  if (!alive) {
    log::error({container->sandbox_id, container->id}, "recovery: {}", alive.error().message);
  }
  if (container->phase == Phase::kCreating || container->phase == Phase::kDeleting) {
    log::info({container->sandbox_id, container->id}, "was half {} when the sandboxer died",
              container->phase == Phase::kCreating ? "created: undone" : "deleted: finished");
    if (Result<> removed = co_await take_away(container); !removed) {
      log::error({container->sandbox_id, container->id}, "{}", removed.error().message);
    }
    bury(container);
    co_return;
  }
  if (container->phase == Phase::kStopped) {
    container->exited.set();
    co_return;
  }
  if (alive.value_or(false)) {
    // New ends: the old ones died with the old daemon. Without a reader a writer sees SIGPIPE.
    if (Result<Stdio> stdio = Stdio::open(container->paths); stdio) {
      container->stdio = std::move(*stdio);
      container->stdio.drop_process_ends();
    }
    watchers_.spawn(watch(container));
    co_return;
  }
  const os::ExitStatus unknown{255, std::chrono::system_clock::now(), false};
  co_await settle_exit(container, unknown);
}

std::vector<std::string> TaskService::containers_of(const std::string& sandbox_id) const {
  std::vector<std::string> ids;
  for (const auto& [id, container] : containers_) {
    if (container->sandbox_id == sandbox_id) ids.push_back(id);
  }
  return ids;
}

Task<Result<>> TaskService::remove_all(std::string sandbox_id) {
  Result<> first;
  for (const std::string& id : containers_of(sandbox_id)) {
    const auto found = containers_.find(id);
    if (found == containers_.end()) continue;
    const ContainerPtr container = found->second;
    const AsyncMutex::Lock lock = co_await container->mutex.lock();
    if (container->gone) continue;
    Result<> removed = co_await end_and_take_away(container);
    if (!removed && first) first = std::move(removed);
  }
  std::erase_if(tombstones_,
                [&](const Tombstone& stone) { return stone.sandbox_id == sandbox_id; });
  co_return first;
}

Task<> TaskService::kill_all(std::string sandbox_id) {
  for (const std::string& id : containers_of(sandbox_id)) {
    if (Result<> killed = co_await driver_.kill_all(id); !killed) {
      log::error({sandbox_id, id}, "{}", killed.error().message);
    }
  }
}

Task<> TaskService::give_up(ContainerPtr container) {
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return;
  log::warning({container->sandbox_id, container->id},
               "containerd has given it up (connection and bundle {} are gone): killing and "
               "removing it",
               container->bundle);
  if (Result<> removed = co_await end_and_take_away(container); !removed) {
    log::error({container->sandbox_id, container->id}, "{}", removed.error().message);
  }
}

// containerd never reconnects a task whose bundle it has removed (T21); such a container may have
// been replaced already, so it must not run on.
Task<> TaskService::sweep() {
  while (!stopping_.is_set()) {
    std::vector<ContainerPtr> lost;
    for (const auto& [id, container] : containers_) {
      const bool connected = container->peer && !container->peer->closed();
      if (!connected && container->phase != Phase::kCreating) lost.push_back(container);
    }
    for (const ContainerPtr& container : lost) {
      std::error_code ec;
      if (std::filesystem::exists(container->bundle, ec) || ec) continue;
      co_await give_up(container);
    }
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
  watchers_.cancel();
  co_await watchers_.join();
}

}  // namespace kuasar::task
