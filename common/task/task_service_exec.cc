#include <signal.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "base/files.h"
#include "base/log.h"
#include "containerd/events/events.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/process.h"
#include "task/any.h"
#include "task/task_service_parts.h"

// Processes that are added to a running container. Each has a mutex of its own: execs of one
// container run in parallel. Until it is started, what it is to run stands in a file of the
// container's directory, so that a restarted daemon can still start it.

namespace kuasar::task {
namespace {

namespace ev = ::containerd::events;

constexpr std::string_view kProcessType =
    "types.containerd.io/opencontainers/runtime-spec/1/Process";

// What an exec that could not be started ends with.
constexpr int kStartFailed = 255;

}  // namespace

ExecPlan TaskService::exec_plan(const Container& container, const Process& exec) {
  return {ref_of(container, exec), container.dir,
          fmt::format("{}/exec-{}.json", container.dir, exec.exec)};
}

Task<Result<Empty>> TaskService::exec(api::ExecProcessRequest request, ttrpc::CallContext context) {
  CO_CHECK(validate_id("exec_id", request.exec_id()));
  CO_TRY(const ContainerPtr container, find(request.id()));
  CO_CHECK(check_wanted(*container, context));
  if (stopping_.is_set()) co_return fail(Code::kUnavailable, "the sandboxer is stopping");
  if (request.exec_id() == "-") {
    co_return fail(Code::kInvalidArgument, "exec_id \"-\" is the name of the init here");
  }
  if (container->execs.contains(request.exec_id())) {
    if (context.redelivered) co_return Empty();
    co_return fail(Code::kAlreadyExists, "exec {} of container {} exists already",
                   request.exec_id(), container->id);
  }
  CO_CHECK(add_exec(container, request));
  log::debug({container->sandbox_id, container->id}, "exec {} added", request.exec_id());
  ev::TaskExecAdded event;
  event.set_container_id(container->id);
  event.set_exec_id(request.exec_id());
  publish("/tasks/exec-added", event);
  co_return Empty();
}

Result<> TaskService::add_exec(const ContainerPtr& container,
                               const api::ExecProcessRequest& request) {
  if (container->phase != Phase::kRunning) {
    return fail(Code::kFailedPrecondition,
                "container {} is {}, a process can be added to a running one only", container->id,
                phase_name(container->phase));
  }
  if (request.spec().type_url() != kProcessType) {
    return fail(Code::kInvalidArgument, "spec: {} is not a {}",
                request.spec().type_url().substr(0, 200), kProcessType);
  }
  TRY(const std::string process, oci::exec_process(request.spec().value(), request.terminal()));
  auto exec = std::make_shared<Process>();
  exec->exec = request.exec_id();
  exec->paths = {request.stdin(), request.stdout(), request.stderr()};
  exec->terminal = request.terminal();
  exec->phase = Phase::kCreated;
  CHECK_OK(write_file(exec_plan(*container, *exec).process_file, process, 0600));
  container->execs[exec->exec] = exec;
  save(*container);
  return {};
}

Task<Result<api::StartResponse>> TaskService::start_exec(Target target, bool redelivered) {
  const auto& [container, exec] = target;
  const AsyncMutex::Lock lock = co_await exec->mutex.lock();
  if (exec->gone) co_return fail(no_such_exec(container->id, exec->exec));
  if (redelivered && exec->phase != Phase::kCreated) {
    // The answer to a Start that an earlier daemon ran was lost: never a second process.
    if (!exec->start_error.empty()) co_return fail(Code::kUnknown, "{}", exec->start_error);
    const api::StartResponse response = started(*container, *exec);
    if (response.pid() > 0) co_return response;
    co_return fail(Code::kUnknown,
                   "OCI runtime exec failed: {} could not be started while the sandboxer was "
                   "restarted; its log says why",
                   name_of(*container, *exec));
  }
  if (exec->phase != Phase::kCreated) {
    co_return fail(Code::kFailedPrecondition, "{} is {}, only a created one can start",
                   name_of(*container, *exec), phase_name(exec->phase));
  }
  if (container->phase != Phase::kRunning) {
    co_return fail(Code::kFailedPrecondition, "container {} is {}, it cannot run {}", container->id,
                   phase_name(container->phase), exec->exec);
  }
  exec->phase = Phase::kStarting;
  if (!save(*container)) {
    // A daemon after us would take it for one that never ran, and run it again.
    exec->phase = Phase::kCreated;
    co_return fail(Code::kResourceExhausted,
                   "{} is not started: that cannot be written down; is the state directory full?",
                   name_of(*container, *exec));
  }
  Result<> ran = co_await run_exec(target);
  if (!ran) {
    log::debug({container->sandbox_id, container->id}, "exec {}: {}", exec->exec,
               ran.error().message);
    settle_failed_start(target, ran.error());
    co_return fail(std::move(ran).error());
  }
  settle_started(target);
  co_return started(*container, *exec);
}

Task<Result<>> TaskService::run_exec(Target target) {
  const auto& [container, exec] = target;
  CO_CHECK(open_streams(container, *exec));
  if (exec->stdin_closed) exec->stdio->close_stdin();
  ExecPlan plan = exec_plan(*container, *exec);
  Result<> ran = co_await driver_.exec(std::move(plan), *exec->stdio);
  exec->stdio->drop_process_ends();
  CO_CHECK(ran);
  co_return co_await begin_exec(target);
}

// It runs: without its streams it must not.
Task<Result<>> TaskService::begin_exec(Target target) {
  const auto& [container, exec] = target;
  Result<> begun = exec->stdio->begin();
  if (begun) {
    if (!exec->window) co_return begun;
    const Result<> sized = exec->stdio->resize(exec->window->first, exec->window->second);
    if (!sized) {
      log::warning({container->sandbox_id, container->id}, "size of the terminal of exec {}: {}",
                   exec->exec, sized.error().message);
    }
    co_return begun;
  }
  const ProcessRef ref = ref_of(*container, *exec);
  if (driver_.signal(ref, SIGKILL)) co_await driver_.wait_exit(ref);
  co_return begun;
}

void TaskService::settle_started(const Target& target) {
  const auto& [container, exec] = target;
  ::unlink(exec_plan(*container, *exec).process_file.c_str());
  exec->phase = Phase::kRunning;
  save(*container);
  ev::TaskExecStarted event;
  event.set_container_id(container->id);
  event.set_exec_id(exec->exec);
  event.set_pid(static_cast<std::uint32_t>(driver_.host_pid(ref_of(*container, *exec))));
  publish("/tasks/exec-started", event);
  watch(target);
}

void TaskService::settle_failed_start(const Target& target, const Error& why) {
  const auto& [container, exec] = target;
  exec->start_error = why.message;
  ::unlink(exec_plan(*container, *exec).process_file.c_str());
  exec->exit_status = kStartFailed;
  exec->exited_at = std::chrono::system_clock::now();
  // containerd waits for the end of its output before it deletes it.
  if (exec->stdio) exec->stdio->process_ended();
  if (exec->former) exec->former->close();
  exec->phase = Phase::kStopped;
  if (save(*container)) driver_.reap(ref_of(*container, *exec));
  exec->exited.set();
}

// The exec's mutex puts the end behind a Start that is still under way.
Task<> TaskService::end_exec(Target target) {
  const auto& [container, exec] = target;
  const os::ExitStatus status = co_await driver_.wait_exit(ref_of(*container, *exec));
  if (ended_) co_return;
  exec->end = status;
  exec->ended.set();
  const AsyncMutex::Lock lock = co_await exec->mutex.lock();
  if (exec->gone || exec->phase == Phase::kStopped) co_return;
  settle_exec(target, status);
}

void TaskService::settle_exec(const Target& target, os::ExitStatus status) {
  const auto& [container, exec] = target;
  exec->exit_status = status.code;
  exec->exited_at = status.at;
  if (exec->stdio) exec->stdio->process_ended();
  exec->phase = Phase::kStopped;
  if (save(*container)) driver_.reap(ref_of(*container, *exec));
  ev::TaskExit event;
  event.set_container_id(container->id);
  event.set_id(exec->exec);
  event.set_pid(static_cast<std::uint32_t>(driver_.host_pid(ref_of(*container, *exec))));
  fill_exit(event, *exec);
  publish("/tasks/exit", event);
  log::debug({container->sandbox_id, container->id}, "exec {} exited with {}", exec->exec,
             status.code);
  exec->exited.set();
}

Task<Result<api::DeleteResponse>> TaskService::remove_exec(Target target) {
  const auto& [container, exec] = target;
  const AsyncMutex::Lock lock = co_await exec->mutex.lock();
  if (exec->gone) co_return fail(no_such_exec(container->id, exec->exec));
  if (exec->phase == Phase::kRunning) {
    co_return fail(Code::kFailedPrecondition, "{} is running; kill it first",
                   name_of(*container, *exec));
  }
  api::DeleteResponse response;
  response.set_pid(static_cast<std::uint32_t>(driver_.host_pid(ref_of(*container, *exec))));
  if (has_stopped(*exec)) fill_exit(response, *exec);
  remember(*container, *exec);
  bury_exec(target);
  save(*container);
  co_return response;
}

void TaskService::bury_exec(const Target& target) {
  const auto& [container, exec] = target;
  close_streams(*exec);
  ::unlink(exec_plan(*container, *exec).process_file.c_str());
  driver_.forget_exec(ref_of(*container, *exec));
  exec->gone = true;
  exec->exited.set();
  container->execs.erase(exec->exec);
}

// Zombies of execs whose end could not be written down; the container is to end, which they keep it
// from.
void TaskService::reap_ended_execs(const Container& container) {
  for (const auto& [id, exec] : container.execs) {
    if (exec->phase == Phase::kStopped) driver_.reap(ref_of(container, *exec));
  }
}

// The init has ended, and with it its execs, or they have been killed (T17): they are told first.
Task<> TaskService::await_execs(ContainerPtr container) {
  std::vector<ProcessPtr> running;
  for (const auto& [id, exec] : container->execs) {
    if (exec->phase == Phase::kStarting || exec->phase == Phase::kRunning) running.push_back(exec);
  }
  const auto until = std::chrono::steady_clock::now() + kKillTimeout;
  for (const ProcessPtr& exec : running) {
    const auto left = until - std::chrono::steady_clock::now();
    const bool ended = co_await exec->exited.wait_for(left);
    if (ended || ended_) continue;
    log::warning({container->sandbox_id, container->id}, "exec {} outlives its container",
                 exec->exec);
  }
}

// With the container's mutex held: its leftovers go with it.
Task<> TaskService::drop_execs(ContainerPtr container) {
  while (!container->execs.empty()) {
    Target target{container, container->execs.begin()->second};
    const AsyncMutex::Lock lock = co_await target.process->mutex.lock();
    if (target.process->gone) continue;
    if (!target.process->stdio) {
      StdioPlan streams = stdio_plan(container, *target.process);
      target.process->stdio = Stdio::recover(watchers_, executor_, holder_, streams, false);
    }
    bury_exec(target);
  }
}

Task<> TaskService::recover_exec(Target target,
                                 std::shared_ptr<const state::v1::ExecState> record) {
  const auto& [container, exec] = target;
  if (exec->phase == Phase::kCreated) co_return;
  StdioPlan streams = stdio_plan(container, *exec);
  exec->stdio = Stdio::recover(watchers_, executor_, holder_, streams, false);
  if (exec->phase == Phase::kStarting) {
    // In the background: the OCI runtime may take its time.
    watchers_.spawn(resume_start(target));
    co_return;
  }
  const Result<bool> found =
      co_await driver_.recover_exec(ref_of(*container, *exec), record->process());
  const bool alive = found.value_or(false);
  if (Result<> begun = exec->stdio->begin(); !begun && alive) {
    log::error({container->sandbox_id, container->id}, "exec {}: {}", exec->exec,
               begun.error().message);
  }
  if (exec->phase == Phase::kStopped) {
    driver_.reap(ref_of(*container, *exec));
    exec->stdio->process_ended(std::chrono::system_clock::now() - exec->exited_at);
    exec->exited.set();
    co_return;
  }
  if (alive) {
    watch(target);
    co_return;
  }
  const os::ExitStatus unknown{255, std::chrono::system_clock::now(), false};
  settle_exec(target, unknown);
}

// An earlier daemon was starting it. It must not run twice: what that daemon began is finished, and
// only what never came to run may be started again.
Task<> TaskService::resume_start(Target target) {
  const auto& [container, exec] = target;
  const AsyncMutex::Lock lock = co_await exec->mutex.lock();
  ExecPlan plan = exec_plan(*container, *exec);
  Result<> ran = co_await driver_.resume_exec(std::move(plan));
  if (ended_) co_return;
  if (!ran && ran.error().code == Code::kNotFound) {
    exec->former = std::move(exec->stdio);
    exec->phase = Phase::kCreated;
    save(*container);
    co_return;
  }
  if (ran) ran = co_await begin_exec(target);
  if (ran) {
    settle_started(target);
    co_return;
  }
  log::warning({container->sandbox_id, container->id}, "exec {}: {}", exec->exec,
               ran.error().message);
  settle_failed_start(target, ran.error());
}

}  // namespace kuasar::task
