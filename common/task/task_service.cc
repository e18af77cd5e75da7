#include "task/task_service.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "containerd/events/events.pb.h"
#include "containerd/runc/v1/options.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/bundle.h"
#include "oci/namespace_plan.h"
#include "task/task_service_parts.h"

namespace kuasar::task {
namespace {

namespace ev = ::containerd::events;

// Whom a call is about.
template <typename Request>
void note_call(const Request& request, CallNotes& notes) {
  notes.container = std::string(request.id()).substr(0, kMaxIdLength);
  if constexpr (requires { request.exec_id(); }) {
    notes.exec = std::string(request.exec_id()).substr(0, kMaxIdLength);
  }
}

constexpr const char* kNamespace = "k8s.io";

Result<> check_create(const api::CreateTaskRequest& request) {
  CHECK_OK(validate_id("id", request.id()));
  const auto refuse = [](std::string_view field, std::string_view why) {
    return fail(Code::kUnimplemented, "{}: {}", field, why);
  };
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

// Logs why a container cannot be. UNIMPLEMENTED must not leave Task.Create: containerd takes it for
// an old task service, tries task.v2 and shows that answer instead (task_manager.go:147-167).
Error refused_create(const std::string& sandbox_id, const std::string& id, Error error) {
  log::warning({sandbox_id, std::string_view(id).substr(0, kMaxIdLength)}, "create failed: {}",
               error.message);
  if (error.code == Code::kUnimplemented) error.code = Code::kFailedPrecondition;
  return error;
}

}  // namespace

TaskService::TaskService(asio::any_io_executor executor, BlockingPool& pool,
                         ContainerDriver& driver, Pods& pods, EventSink& events,
                         os::FdHolder& holder, std::string console_dir)
    : executor_(executor),
      pool_(pool),
      driver_(driver),
      pods_(pods),
      events_(events),
      holder_(holder),
      console_dir_(std::move(console_dir)),
      watchers_(std::move(executor)) {}

void TaskService::serve_on(ttrpc::Server& server) {
  const std::string service = "containerd.task.v3.Task";
  const auto add = [&]<typename Req, typename Resp>(
                       const char* method,
                       Task<Result<Resp>> (TaskService::*handler)(Req, ttrpc::CallContext)) {
    server.add<Req, Resp>(service, method,
                          [this, handler](Req request, ttrpc::CallContext context) {
                            if (context.notes) note_call(request, *context.notes);
                            return (this->*handler)(std::move(request), std::move(context));
                          });
  };
  add("Create", &TaskService::create);
  add("Start", &TaskService::start);
  add("State", &TaskService::state);
  server.add_wait<api::WaitRequest, api::WaitResponse>(
      service, "Wait", [this](api::WaitRequest request, ttrpc::CallContext context) {
        if (context.notes) note_call(request, *context.notes);
        return wait(std::move(request), std::move(context));
      });
  add("Kill", &TaskService::kill);
  add("Delete", &TaskService::remove);
  add("Connect", &TaskService::connect);
  add("Pids", &TaskService::pids);
  add("Exec", &TaskService::exec);
  add("ResizePty", &TaskService::resize_pty);
  add("CloseIO", &TaskService::close_io);
  add("Shutdown", &TaskService::shutdown);
  add("Pause", &TaskService::pause);
  add("Resume", &TaskService::resume);
  add("Update", &TaskService::update);
  add("Stats", &TaskService::stats);
  add("Checkpoint", &TaskService::checkpoint);
}

void TaskService::publish(std::string topic, const google::protobuf::MessageLite& event) {
  events_.publish(kNamespace, std::move(topic), event);
}

bool TaskService::save(const Container& container) {
  state::v1::ContainerState record = to_record(container);
  driver_.save(container.id, record);
  const Result<> saved = pods_.save(record);
  if (saved) return true;
  // What happened has happened: a full disk must not undo it. Recovery looks at the kernel.
  log::error({container.sandbox_id, container.id}, "the container's record is out of date: {}",
             saved.error().message);
  return false;
}

Result<TaskService::ContainerPtr> TaskService::find(const std::string& id) const {
  CHECK_OK(validate_id("id", id));
  const auto found = containers_.find(id);
  if (found == containers_.end()) return fail(no_such_container(id));
  return found->second;
}

Result<TaskService::Target> TaskService::find(const std::string& id,
                                              const std::string& exec_id) const {
  if (!exec_id.empty()) CHECK_OK(validate_id("exec_id", exec_id));
  TRY(const ContainerPtr container, find(id));
  if (exec_id.empty()) return Target{container, container};
  const auto exec = container->execs.find(exec_id);
  if (exec == container->execs.end()) return fail(no_such_exec(id, exec_id));
  return Target{container, exec->second};
}

StdioPlan TaskService::stdio_plan(const ContainerPtr& container, const Process& process) const {
  StdioPlan plan;
  plan.container = container->id;
  plan.exec = process.exec;
  plan.paths = process.paths;
  plan.terminal = process.terminal;
  // The init of a PID namespace is alone with its FIFOs, its end frees them; what another process
  // leaves behind may hold them for ever (T17, T23).
  plan.pump = !process.exec.empty() || container->shared_pid_namespace;
  plan.uid = container->io_uid;
  plan.gid = container->io_gid;
  plan.label = container->mount_label;
  plan.console_dir = console_dir_;
  plan.connected = [weak = std::weak_ptr<Container>(container), exec = process.exec] {
    const auto alive = weak.lock();
    if (!alive) return false;
    const auto own = alive->execs.find(exec);
    return connected(*alive) || (own != alive->execs.end() && own->second->own_reader);
  };
  return plan;
}

Result<> TaskService::open_streams(const ContainerPtr& container, Process& process) {
  StdioPlan plan = stdio_plan(container, process);
  TRY(process.stdio, Stdio::open(watchers_, executor_, holder_, plan));
  if (process.former) process.former->forsake();
  process.former.reset();
  return {};
}

void TaskService::close_streams(Process& process) {
  // A former one's names are those of what was opened after it.
  if (process.stdio) process.stdio->close();
  if (process.former) process.former->close();
}

bool TaskService::connected(const Container& container) {
  return container.peer && !container.peer->closed();
}

void TaskService::note_peer(Container& container, const ttrpc::CallContext& context) {
  set_peer(container, context.peer);
  if (context.redelivered) readers_are_there(container);
}

void TaskService::set_peer(Container& container, const std::shared_ptr<ttrpc::Peer>& peer) {
  if (container.peer == peer) return;
  const bool same = container.peer && container.peer->id() == peer->id();
  container.peer = peer;
  container.lost_since.reset();
  if (same) return readers_are_there(container);
  // Half made and half deleted ones are recorded by who makes or deletes them; what its pod has
  // taken away has no record any more.
  if (!container.taken_away && container.phase != Phase::kCreating &&
      container.phase != Phase::kDeleting)
    save(container);
}

// A daemon was away, containerd was not: its readers wait for the end of what has ended.
void TaskService::readers_are_there(const Container& container) {
  if (container.stdio) container.stdio->reader_came();
  for (const auto& [id, exec] : container.execs) {
    if (exec->stdio) exec->stdio->reader_came();
  }
}

// containerd takes the bundle away when it gives a container up: what it had asked for before must
// not happen any more.
Result<> TaskService::check_wanted(const Container& container, const ttrpc::CallContext& context) {
  if (!context.redelivered || ::access(container.bundle.c_str(), F_OK) == 0) return {};
  return fail(Code::kNotFound, "container {} has been given up: its bundle {} is gone",
              container.id, container.bundle);
}

std::vector<state::v1::ContainerState> TaskService::records() const {
  std::vector<state::v1::ContainerState> all;
  for (const auto& [id, container] : containers_) {
    if (container->taken_away) continue;
    driver_.save(id, all.emplace_back(to_record(*container)));
  }
  return all;
}

std::map<std::string, std::size_t> TaskService::counts() const {
  std::map<std::string, std::size_t> counts;
  for (const Phase phase : {Phase::kCreating, Phase::kCreated, Phase::kRunning, Phase::kPaused,
                            Phase::kStopped, Phase::kDeleting}) {
    counts.emplace(phase_name(phase), 0);
  }
  for (const auto& [id, container] : containers_)
    ++counts[std::string(phase_name(container->phase))];
  return counts;
}

std::size_t TaskService::exec_count() const {
  std::size_t count = 0;
  for (const auto& [id, container] : containers_) count += container->execs.size();
  return count;
}

std::shared_ptr<const Timeline> TaskService::timeline_of(const std::string& id) const {
  const auto found = containers_.find(id);
  return found == containers_.end() ? nullptr : found->second->timeline;
}

Task<Result<api::CreateTaskResponse>> TaskService::create(api::CreateTaskRequest request,
                                                          ttrpc::CallContext context) {
  if (Result<> checked = check_create(request); !checked) {
    co_return fail(refused_create({}, request.id(), std::move(checked).error()));
  }
  if (stopping_.is_set()) co_return fail(Code::kUnavailable, "the sandboxer is stopping");
  const Busy busy(*this);
  if (const auto known = containers_.find(request.id()); known != containers_.end()) {
    // Half-made ones are undone before a request is delivered again.
    if (context.redelivered) co_return created(*known->second);
    co_return fail(Code::kAlreadyExists, "container {} exists already", request.id());
  }
  auto container = std::make_shared<Container>();
  container->id = request.id();
  container->bundle = request.bundle();
  container->paths = {request.stdin(), request.stdout(), request.stderr()};
  container->terminal = request.terminal();
  container->peer = context.peer;
  container->timeline = std::make_shared<Timeline>(context.arrived);
  const Span creating(container->timeline, "Task.Create", context.arrived);
  if (context.notes) context.notes->timeline = container->timeline;
  if (auto former = undone_.extract(container->id)) container->former = std::move(former.mapped());
  containers_[container->id] = container;
  const AsyncMutex::Lock lock = co_await container->mutex.lock();

  auto shared_request = std::make_shared<const api::CreateTaskRequest>(std::move(request));
  Result<> made = co_await make(container, shared_request);
  if (context.notes) context.notes->sandbox = container->sandbox_id;
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
  event.mutable_io()->set_stdin(container->paths.stdin_path);
  event.mutable_io()->set_stdout(container->paths.stdout_path);
  event.mutable_io()->set_stderr(container->paths.stderr_path);
  event.mutable_io()->set_terminal(container->terminal);
  event.set_pid(pid);
  publish("/tasks/create", event);
  watch({container, container});
  watch_oom(container);
  co_return created(*container);
}

api::CreateTaskResponse TaskService::created(const Container& container) const {
  api::CreateTaskResponse response;
  response.set_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(container))));
  return response;
}

api::StartResponse TaskService::started(const Container& container, const Process& process) const {
  api::StartResponse response;
  response.set_pid(static_cast<std::uint32_t>(driver_.host_pid(ref_of(container, process))));
  return response;
}

Task<Result<>> TaskService::make(ContainerPtr container,
                                 std::shared_ptr<const api::CreateTaskRequest> request) {
  CO_TRY(const ::containerd::runc::v1::Options options, runc_options(*request));
  CO_TRY(container->runtime, driver_.runtime_for(options.binary_name()));
  auto open = [path = container->bundle] { return oci::open_bundle(path); };
  const TimelinePtr timeline = container->timeline;
  CO_TRY(oci::Bundle bundle, co_await pool_.run(std::move(open), timeline, "read the bundle"));
  CO_CHECK(failpoint_result("container.bundle"));
  CO_TRY(const bool terminal, bundle.spec.terminal());
  if (terminal != container->terminal) {
    co_return fail(Code::kInvalidArgument, "terminal: {} here, process.terminal of config.json {}",
                   container->terminal, terminal);
  }
  const std::string sandbox_id = bundle.sandbox_id;
  CO_TRY(const ContainerPtr target, find_target(sandbox_id, bundle.spec));
  Span attaching(timeline, "attach to the pod");
  CO_TRY(Attachment attachment,
         co_await pods_.attach(sandbox_id, container->id, std::move(bundle.spec), timeline));
  attaching.end();
  container->sandbox_id = sandbox_id;
  CO_CHECK(failpoint_result("container.attached"));
  if (target) CO_CHECK(check_target(*target));
  container->shared_pid_namespace = attachment.shared_pid_namespace;
  container->dir = attachment.dir;
  container->io_uid = options.io_uid();
  container->io_gid = options.io_gid();
  CO_TRY(container->mount_label, attachment.spec.mount_label());
  Span noting(timeline, "record");
  CO_CHECK(pods_.save(to_record(*container)));
  noting.end();
  CO_CHECK(failpoint_result("container.noted"));
  Span opening(timeline, "streams");
  CO_CHECK(open_streams(container, *container));
  opening.end();
  CO_CHECK(failpoint_result("container.streams"));

  ContainerPlan plan{container->id,
                     sandbox_id,
                     std::move(attachment.dir),
                     container->bundle + "/rootfs",
                     rootfs_mounts(*request),
                     std::move(attachment.spec),
                     std::move(attachment.id_map),
                     options.no_pivot_root(),
                     options.no_new_keyring(),
                     container->runtime,
                     timeline};
  Result<> created = co_await driver_.create(std::move(plan), *container->stdio);
  container->stdio->drop_process_ends();
  CO_CHECK(created);
  CO_CHECK(failpoint_result("container.created"));
  CO_CHECK(container->stdio->begin());
  container->phase = Phase::kCreated;
  const Span recording(timeline, "record");
  state::v1::ContainerState record = to_record(*container);
  driver_.save(container->id, record);
  CO_CHECK(pods_.save(record));
  co_return failpoint_result("container.recorded");
}

// The container whose PID namespace the spec asks for (TARGET); none when it asks for no such one.
Result<TaskService::ContainerPtr> TaskService::find_target(const std::string& sandbox_id,
                                                           const oci::Spec& spec) const {
  TRY(const pid_t pid, oci::target_pid(spec));
  if (pid == 0) return ContainerPtr();
  for (const auto& [id, container] : containers_) {
    if (container->sandbox_id != sandbox_id || !check_target(*container)) continue;
    if (driver_.host_pid(init_of(*container)) == pid) return container;
  }
  return fail(Code::kInvalidArgument,
              "linux.security_context.namespace_options.pid: TARGET: process {} is no running "
              "container of sandbox {}",
              pid, sandbox_id);
}

// Its pid is its own as long as nobody has reaped it; signal 0 asks by pidfd.
Result<> TaskService::check_target(const Container& target) const {
  const bool lives = target.phase == Phase::kCreated || target.phase == Phase::kRunning;
  if (lives && !target.gone && !target.end && driver_.signal(init_of(target), 0)) return {};
  return fail(Code::kFailedPrecondition,
              "linux.security_context.namespace_options.pid: TARGET: container {} has ended",
              target.id);
}

Task<Result<api::StartResponse>> TaskService::start(api::StartRequest request,
                                                    ttrpc::CallContext context) {
  const Busy busy(*this);
  CO_TRY(const Target target, find(request.id(), request.exec_id()));
  if (context.notes) context.notes->sandbox = target.container->sandbox_id;
  CO_CHECK(check_wanted(*target.container, context));
  if (context.redelivered) note_peer(*target.container, context);
  if (!target.process->exec.empty()) co_return co_await start_exec(target, context.redelivered);
  const Span starting(target.container->timeline, "Task.Start", context.arrived);
  if (context.notes) context.notes->timeline = target.container->timeline;
  co_return co_await start_init(target.container, context.redelivered);
}

Task<Result<api::StartResponse>> TaskService::start_init(ContainerPtr container, bool redelivered) {
  Span locking(container->timeline, "container's lock", SpanKind::kWait);
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  locking.end();
  if (container->gone) co_return fail(no_such_container(container->id));
  // The answer to a Start that an earlier daemon ran was lost.
  if (redelivered && container->phase != Phase::kCreated) co_return started(*container, *container);
  if (container->phase != Phase::kCreated) {
    co_return fail(Code::kFailedPrecondition, "container {} is {}, only a created one can start",
                   container->id, phase_name(container->phase));
  }
  CO_CHECK(failpoint_result("container.start"));
  CO_CHECK(co_await driver_.start(container->id));
  CO_CHECK(failpoint_result("container.started"));
  container->phase = Phase::kRunning;
  Span recording(container->timeline, "record");
  save(*container);
  recording.end();
  const api::StartResponse response = started(*container, *container);
  log::debug({container->sandbox_id, container->id}, "started");
  ev::TaskStart event;
  event.set_container_id(container->id);
  event.set_pid(response.pid());
  publish("/tasks/start", event);
  co_return response;
}

// Until then it costs no coroutine.
void TaskService::watch(const Target& target) {
  const bool init = target.process == target.container;
  driver_.on_exit(executor_, ref_of(*target.container, *target.process),
                  [this, init, container = std::weak_ptr(target.container),
                   process = std::weak_ptr(target.process)] {
                    Target ended{container.lock(), process.lock()};
                    if (ended_ || !ended.container || !ended.process) return;
                    watchers_.spawn(init ? end(ended.container) : end_exec(ended));
                  });
}

// Of the container's init. The container's mutex puts the end behind a Start that is still under
// way, so that nobody sees the exit before the start.
Task<> TaskService::end(ContainerPtr container) {
  const os::ExitStatus status = co_await driver_.wait_exit(init_of(*container));
  if (ended_) co_return;
  container->end = status;
  container->ended.set();
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
  co_await await_execs(container);
  if (!status.known) {
    log::warning({container->sandbox_id, container->id},
                 "its exit code is lost (it ended while no sandboxer was there); reported as 255");
  }
  co_await tell_oom_of_the_end(container);
  container->exit_status = status.code;
  container->exited_at = status.at;
  // T12, T22: before anybody is told.
  if (container->stdio) container->stdio->process_ended();
  container->phase = Phase::kStopped;
  // Its zombie would keep the init of a PID namespace that it shared (TARGET) from ending.
  if (save(*container) && container->shared_pid_namespace) driver_.reap(init_of(*container));
  ev::TaskExit event;
  event.set_container_id(container->id);
  event.set_id(container->id);
  event.set_pid(static_cast<std::uint32_t>(driver_.host_pid(init_of(*container))));
  fill_exit(event, *container);
  publish("/tasks/exit", event);
  log::info({container->sandbox_id, container->id}, "exited with {}", status.code);
  container->exited.set();
}

// With the mutex held: ends what still runs, then removes the container and remembers its status.
// Who called buries it.
Task<Result<>> TaskService::end_and_take_away(ContainerPtr container) {
  if (container->phase == Phase::kCreated || container->phase == Phase::kRunning ||
      container->phase == Phase::kPaused) {
    reap_ended_execs(*container);
    CO_CHECK(co_await driver_.kill_all(container->id));
    const bool ended = co_await container->ended.wait_for(kKillTimeout);
    if (!ended) {
      co_return fail(Code::kDeadlineExceeded, "container {} does not end on SIGKILL within {} s",
                     container->id, kKillTimeout.count());
    }
    co_await settle_exit(container, *container->end);
  }
  const pid_t pid = driver_.host_pid(init_of(*container));
  container->phase = Phase::kDeleting;
  remember(*container, *container);
  co_await drop_execs(container);
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
  co_return Result<>();
}

pid_t TaskService::init_pid(const Container& container) const {
  return container.taken_away.value_or(driver_.host_pid(init_of(container)));
}

void TaskService::bury(const ContainerPtr& container) {
  container->gone = true;
  container->exited.set();
  containers_.erase(container->id);
}

Task<Result<>> TaskService::take_away(ContainerPtr container) {
  CO_CHECK(co_await driver_.remove(container->id));
  close_streams(*container);
  if (container->sandbox_id.empty()) co_return Result<>();
  co_return co_await pods_.detach(container->sandbox_id, container->id);
}

}  // namespace kuasar::task
