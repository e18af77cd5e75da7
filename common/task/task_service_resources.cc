#include <signal.h>
#include <unistd.h>

#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "containerd/events/events.pb.h"
#include "containerd/runc/v1/options.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "oci/resources.h"
#include "task/any.h"
#include "task/task_service_parts.h"

// Pause, limits, usage, the OOM killer, checkpoints. Whether a container is paused stands in no
// record: after a restart its freezer says so.

namespace kuasar::task {
namespace {

namespace ev = ::containerd::events;
using namespace std::chrono_literals;

constexpr std::string_view kResourcesType =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

// How long the answer about an end waits for containerd to take the event about the OOM killer.
constexpr auto kOomGrace = 500ms;

Error not_possible(const Container& container, std::string_view what) {
  return Error::make(Code::kFailedPrecondition, "container {} is {}, {}", container.id,
                     phase_name(container.phase), what);
}

Result<CheckpointPlan> checkpoint_plan(const api::CheckpointTaskRequest& request) {
  ::containerd::runc::v1::CheckpointOptions options;
  if (!request.options().type_url().empty() && !unpack_any(request.options(), options)) {
    return fail(Code::kInvalidArgument, "options: {} is not a containerd.runc.v1.CheckpointOptions",
                request.options().type_url().substr(0, 200));
  }
  CheckpointPlan plan;
  plan.container = request.id();
  plan.image_path = options.image_path().empty() ? request.path() : options.image_path();
  plan.work_path = options.work_path();
  if (plan.image_path.empty() || plan.image_path.front() != '/') {
    return fail(Code::kInvalidArgument, "path \"{}\" is not an absolute path",
                plan.image_path.substr(0, 200));
  }
  if (!plan.work_path.empty() && plan.work_path.front() != '/') {
    return fail(Code::kInvalidArgument, "options.work_path \"{}\" is not an absolute path",
                plan.work_path.substr(0, 200));
  }
  plan.exit = options.exit();
  plan.open_tcp = options.open_tcp();
  plan.external_unix_sockets = options.external_unix_sockets();
  plan.terminal = options.terminal();
  plan.file_locks = options.file_locks();
  plan.empty_namespaces = {options.empty_namespaces().begin(), options.empty_namespaces().end()};
  plan.cgroups_mode = options.cgroups_mode();
  return plan;
}

// criu writes it last but one of all, when the processes are in the image.
bool has_image(const std::string& path) {
  return ::access((path + "/inventory.img").c_str(), F_OK) == 0;
}

}  // namespace

Task<Result<Empty>> TaskService::pause(api::PauseRequest request, ttrpc::CallContext context) {
  const Busy busy(*this);
  CO_TRY(const ContainerPtr container, find(request.id()));
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  // The daemon that died may have asked for the freeze and not seen the end of it.
  const bool begun = context.redelivered && container->phase == Phase::kPaused;
  if (!begun && container->phase != Phase::kRunning) {
    co_return fail(not_possible(*container, "only a running one can be paused"));
  }
  Result<> frozen = co_await driver_.freeze(container->id);
  if (!frozen) {
    container->phase = driver_.frozen(container->id) ? Phase::kPaused : Phase::kRunning;
    co_return fail(std::move(frozen).error());
  }
  if (begun) co_return Empty();
  failpoint("task.Pause.frozen");
  if (container->killed) {
    // A SIGKILL came meanwhile: it must act.
    CO_CHECK(co_await driver_.thaw(container->id));
    co_return fail(Code::kFailedPrecondition, "container {} is being killed", container->id);
  }
  container->phase = Phase::kPaused;
  log::debug({container->sandbox_id, container->id}, "paused");
  ev::TaskPaused event;
  event.set_container_id(container->id);
  publish("/tasks/paused", event);
  co_return Empty();
}

Task<Result<Empty>> TaskService::resume(api::ResumeRequest request, ttrpc::CallContext context) {
  const Busy busy(*this);
  CO_TRY(const ContainerPtr container, find(request.id()));
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  if (context.redelivered && container->phase == Phase::kRunning) co_return Empty();
  if (container->phase != Phase::kPaused) {
    co_return fail(not_possible(*container, "only a paused one can be resumed"));
  }
  CO_CHECK(co_await thaw(container));
  co_return Empty();
}

// With the mutex held.
Task<Result<>> TaskService::thaw(ContainerPtr container) {
  CO_CHECK(co_await driver_.thaw(container->id));
  failpoint("task.Resume.thawed");
  container->phase = Phase::kRunning;
  log::debug({container->sandbox_id, container->id}, "resumed");
  ev::TaskResumed event;
  event.set_container_id(container->id);
  publish("/tasks/resumed", event);
  co_return Result<>();
}

// On cgroup v1 not even SIGKILL acts on what is frozen.
Task<Result<>> TaskService::thaw_to_die(ContainerPtr container) {
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone || container->phase != Phase::kPaused) co_return Result<>();
  co_return co_await thaw(container);
}

Task<Result<Empty>> TaskService::update(api::UpdateTaskRequest request, ttrpc::CallContext) {
  const Busy busy(*this);
  CO_TRY(const ContainerPtr container, find(request.id()));
  if (request.resources().type_url() != kResourcesType) {
    co_return fail(Code::kInvalidArgument, "resources: {} is not a {}",
                   request.resources().type_url().substr(0, 200), kResourcesType);
  }
  CO_TRY(os::CgroupLimits limits, oci::parse_resources(request.resources().value()));
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  const bool lives = container->phase == Phase::kCreated || container->phase == Phase::kRunning ||
                     container->phase == Phase::kPaused;
  if (!lives) co_return fail(not_possible(*container, "its limits cannot be changed any more"));
  CO_CHECK(co_await driver_.update(container->id, std::move(limits)));
  co_return Empty();
}

Task<Result<api::StatsResponse>> TaskService::stats(api::StatsRequest request, ttrpc::CallContext) {
  CO_TRY(const ContainerPtr container, find(request.id()));
  if (container->phase == Phase::kCreating) co_return fail(no_such_container(container->id));
  api::StatsResponse response;
  CO_TRY(*response.mutable_stats(), co_await driver_.stats(container->id));
  co_return response;
}

Task<Result<Empty>> TaskService::checkpoint(api::CheckpointTaskRequest request,
                                            ttrpc::CallContext context) {
  const Busy busy(*this);
  CO_TRY(const ContainerPtr container, find(request.id()));
  CO_TRY(CheckpointPlan plan, checkpoint_plan(request));
  const AsyncMutex::Lock lock = co_await container->mutex.lock();
  if (container->gone) co_return fail(no_such_container(container->id));
  // The answer was lost; what an interrupted criu leaves has no inventory.
  plan.written = context.redelivered && has_image(plan.image_path);
  const bool written = plan.written;
  if (!written && container->phase != Phase::kRunning) {
    co_return fail(not_possible(*container, "only a running one can be checkpointed"));
  }
  ev::TaskCheckpointed event;
  event.set_container_id(container->id);
  event.set_checkpoint(plan.image_path);
  CO_CHECK(co_await driver_.checkpoint(std::move(plan)));
  if (!written) publish("/tasks/checkpointed", event);
  co_return Empty();
}

// True when the OOM killer has ended a process of it that nobody has been told of yet.
bool TaskService::tell_oom(const ContainerPtr& container) {
  const std::uint64_t kills = driver_.oom_kills(container->id);
  if (kills <= container->oom_kills) return false;
  container->oom_kills = kills;
  log::info({container->sandbox_id, container->id}, "the OOM killer has ended {} of its processes",
            kills);
  ev::TaskOOM event;
  event.set_container_id(container->id);
  publish("/tasks/oom", event);
  return true;
}

// T3: CRI takes "OOMKilled" from this event alone; it has to know before it hears of the end.
Task<> TaskService::tell_oom_of_the_end(ContainerPtr container) {
  if (!tell_oom(container)) co_return;
  const bool taken = co_await events_.drain(kOomGrace);
  if (!taken) {
    log::warning({container->sandbox_id, container->id},
                 "containerd does not take the event about the OOM killer; it may say \"Error\" "
                 "instead of \"OOMKilled\"");
  }
}

// Children of an init that lives on may be killed, too.
void TaskService::watch_oom(const ContainerPtr& container) {
  const auto look = [this, weak = std::weak_ptr(container)] {
    const ContainerPtr watched = weak.lock();
    if (!watched || ended_ || watched->gone || has_stopped(*watched)) return;
    if (tell_oom(watched)) save(*watched);
  };
  driver_.on_oom(executor_, container->id, look);
  // What happened before.
  look();
}

}  // namespace kuasar::task
