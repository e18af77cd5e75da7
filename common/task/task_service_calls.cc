#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/log.h"
#include "containerd/task/v3/task.pb.h"
#include "task/task_service_parts.h"

// The calls that change no container: what is asked about it, and what is said to its processes.

namespace kuasar::task {
namespace {

// containerd itself waits for 2 s (io.containerd.timeout.task.state).
constexpr std::chrono::milliseconds kReadersPatience(1000);

}  // namespace

Task<Result<api::StateResponse>> TaskService::state(api::StateRequest request,
                                                    ttrpc::CallContext context) {
  CO_TRY(const Target target, find(request.id(), request.exec_id()));
  const auto& [container, process] = target;
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  note_peer(*container, context);
  // T22: a containerd that was away opens its readers after the first of these answers, and cancels
  // those that have not come to open theirs after the third: they are given the time.
  if (const auto stdio = process->stdio) {
    co_await Stdio::read_within(stdio, kReadersPatience);
    if (process->gone) co_return fail(not_there(*container, *process));
    stdio->reader_came();
  }
  api::StateResponse response;
  response.set_id(container->id);
  response.set_exec_id(process->exec);
  response.set_bundle(container->bundle);
  response.set_pid(static_cast<std::uint32_t>(
      process->exec.empty() ? init_pid(*container)
                            : driver_.host_pid(ref_of(*container, *process))));
  response.set_status(to_status(process->phase));
  response.set_stdin(process->paths.stdin_path);
  response.set_stdout(process->paths.stdout_path);
  response.set_stderr(process->paths.stderr_path);
  response.set_terminal(process->terminal);
  if (has_stopped(*process)) fill_exit(response, *process);
  co_return response;
}

Result<ttrpc::Awaited<api::WaitResponse>> TaskService::wait(api::WaitRequest request,
                                                            ttrpc::CallContext context) {
  TRY(const Target target, find(request.id(), request.exec_id()));
  note_peer(*target.container, context);
  return ttrpc::Awaited<api::WaitResponse>{{&target.process->exited},
                                           [target] { return end_of(target); }};
}

Task<Result<api::WaitResponse>> TaskService::await_exit(std::string id, std::string exec_id,
                                                        std::shared_ptr<ttrpc::Peer> peer) {
  CO_TRY(const Target target, find(id, exec_id));
  target.process->own_reader = true;
  std::vector<const Event*> events = {&target.process->exited, &peer->closed_event()};
  co_await Event::wait_any(std::move(events));
  if (!target.process->exited.is_set()) {
    co_return fail(Code::kUnavailable, "the connection is gone");
  }
  Result<api::WaitResponse> end = end_of(target);
  if (end && target.process->stdio) target.process->stdio->reader_came();
  co_return end;
}

// One that was deleted before the waiter was asked still has its status.
Result<api::WaitResponse> TaskService::end_of(const Target& target) {
  const auto& [container, process] = target;
  if (process->gone && !has_stopped(*process)) return fail(not_there(*container, *process));
  api::WaitResponse response;
  fill_exit(response, *process);
  return response;
}

Task<Result<Empty>> TaskService::kill(api::KillRequest request, ttrpc::CallContext context) {
  // A signal must not come twice.
  if (context.applied) co_return Empty();
  CO_TRY(const Target target, find(request.id(), request.exec_id()));
  const auto& [container, process] = target;
  const ProcessRef ref = ref_of(*container, *process);
  const bool init = process->exec.empty();
  if (request.signal() < 1 || request.signal() > 64) {
    co_return fail(Code::kInvalidArgument, "signal {} is not between 1 and 64", request.signal());
  }
  const int number = static_cast<int>(request.signal());
  if (process->phase == Phase::kCreating || process->phase == Phase::kStarting) {
    const AsyncMutex::Lock lock = co_await process->mutex.lock();
  }
  if (process->gone) co_return fail(not_there(*container, *process));
  const auto finished = [&, redelivered = context.redelivered]() -> Result<Empty> {
    // It may have been this very signal, whose answer was lost.
    if (redelivered) return Empty();
    return fail(Code::kNotFound, "{}: process already finished", name_of(*container, *process));
  };
  if (has_stopped(*process)) co_return finished();
  if (!init && process->phase == Phase::kCreated) {
    co_return fail(Code::kFailedPrecondition, "{} is not started", name_of(*container, *process));
  }
  if (init && number == SIGKILL) {
    container->killed = true;
    reap_ended_execs(*container);
  }
  if (init && request.all() && number == SIGKILL) {
    CO_CHECK(co_await driver_.kill_all(container->id));
    if (context.mark_applied) context.mark_applied();
    co_return Empty();
  }
  Result<> sent = driver_.signal(ref, number);
  if (!sent && sent.error().code == Code::kNotFound) co_return finished();
  CO_CHECK(sent);
  if (init && number == SIGKILL) CO_CHECK(co_await driver_.thaw_to_die(container->id));
  if (container->killed && container->phase == Phase::kPaused) {
    CO_CHECK(co_await thaw_to_die(container));
  }
  if (init && request.all()) CO_CHECK(co_await driver_.signal_others(container->id, number));
  if (context.mark_applied) context.mark_applied();
  co_return Empty();
}

Task<Result<Empty>> TaskService::resize_pty(api::ResizePtyRequest request, ttrpc::CallContext) {
  CO_TRY(const Target target, find(request.id(), request.exec_id()));
  const auto& [container, process] = target;
  constexpr std::uint32_t kMax = std::numeric_limits<std::uint16_t>::max();
  if (request.width() > kMax || request.height() > kMax) {
    co_return fail(Code::kInvalidArgument, "{} x {} is no size of a terminal", request.width(),
                   request.height());
  }
  if (!process->terminal) {
    co_return fail(Code::kFailedPrecondition, "{} has no terminal", name_of(*container, *process));
  }
  const auto width = static_cast<std::uint16_t>(request.width());
  const auto height = static_cast<std::uint16_t>(request.height());
  if (has_stopped(*process)) {
    co_return fail(Code::kNotFound, "{}: process already finished", name_of(*container, *process));
  }
  if (process->phase == Phase::kCreating || !process->exec.empty()) {
    // Until its terminal is there the size waits for it.
    process->window = std::pair(width, height);
    if (process->phase != Phase::kRunning) {
      if (!process->exec.empty()) save(*container);
      co_return Empty();
    }
  }
  CO_CHECK(co_await driver_.resize(ref_of(*container, *process), process->stdio, width, height));
  co_return Empty();
}

Task<Result<Empty>> TaskService::close_io(api::CloseIORequest request, ttrpc::CallContext) {
  CO_TRY(const Target target, find(request.id(), request.exec_id()));
  if (!request.stdin()) co_return Empty();
  target.process->stdin_closed = true;
  if (target.process->stdio) {
    target.process->stdio->close_stdin();
  } else if (!target.process->exec.empty()) {
    save(*target.container);
  }
  co_return Empty();
}

Task<Result<api::ConnectResponse>> TaskService::connect(api::ConnectRequest request,
                                                        ttrpc::CallContext context) {
  CO_TRY(const ContainerPtr container, find(request.id()));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  note_peer(*container, context);
  api::ConnectResponse response;
  response.set_shim_pid(static_cast<std::uint32_t>(::getpid()));
  response.set_task_pid(static_cast<std::uint32_t>(init_pid(*container)));
  response.set_version("v3");
  co_return response;
}

Task<Result<api::PidsResponse>> TaskService::pids(api::PidsRequest request, ttrpc::CallContext) {
  CO_TRY(const ContainerPtr container, find(request.id()));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  api::PidsResponse response;
  for (const pid_t pid : driver_.pids(container->id)) {
    response.add_processes()->set_pid(static_cast<std::uint32_t>(pid));
  }
  // T7: an empty list makes a restarting containerd delete the task.
  if (response.processes().empty()) {
    response.add_processes()->set_pid(static_cast<std::uint32_t>(init_pid(*container)));
  }
  co_return response;
}

// containerd sends it after a failed create, newer ones after every Delete: the daemon serves all
// pods and stays.
Task<Result<Empty>> TaskService::shutdown(api::ShutdownRequest, ttrpc::CallContext) {
  co_return Empty();
}

}  // namespace kuasar::task
