#include "daemon/ctl_service.h"

#include <chrono>
#include <map>
#include <utility>

#include "base/files.h"
#include "base/ids.h"
#include "base/log.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "oci/spec.h"
#include "task/convert.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;
namespace api = ctl::v1;

constexpr const char* kService = "kuasar.ctl.v1.Ctl";
constexpr auto kStopTimeout = 3s;
/// Work in a thread that takes longer is told (docs/ARCHITECTURE.md).
constexpr auto kSlowWork = 30s;
constexpr const char* kNameAnnotation = "io.kubernetes.cri.container-name";

struct Naming {
  std::filesystem::path config;
  std::string* name;
};

// Blocking.
void read_names(const std::vector<Naming>& containers) {
  for (const auto& [config, name] : containers) {
    const Result<std::string> text = read_file(config, oci::kMaxSpecBytes);
    if (!text) continue;
    const Result<oci::Spec> spec = oci::Spec::parse(*text);
    if (!spec) continue;
    if (Result<std::optional<std::string>> found = spec->annotation(kNameAnnotation); found) {
      *name = found->value_or("");
    }
  }
}

void tell(const std::shared_ptr<const Timeline>& timeline, api::Timeline& told) {
  *told.mutable_begun_at() = task::to_timestamp(timeline->begun_at());
  told.set_dropped(static_cast<std::uint32_t>(timeline->dropped()));
  for (const Timeline::Entry& entry : timeline->entries()) {
    api::Timeline::Span* span = told.add_spans();
    span->set_name(entry.name);
    span->set_wait(entry.kind == SpanKind::kWait);
    span->set_begin_ns(entry.begin.count());
    span->set_end_ns(entry.end.count());
    span->set_depth(static_cast<std::uint32_t>(entry.depth));
  }
}

// A thousand pods must fit into one answer.
void shorten(state::v1::SandboxState& state) {
  ::runtime::v1::PodSandboxConfig rest;
  *rest.mutable_metadata() = state.config().metadata();
  *state.mutable_config() = std::move(rest);
}

}  // namespace

CtlService::CtlService(asio::any_io_executor executor, Parts parts)
    : parts_(std::move(parts)),
      execs_(executor, parts_.pool, parts_.store.paths(), parts_.tasks),
      server_(executor),
      group_(executor) {
  server_.add<api::ListRequest, api::ListResponse>(
      kService, "List", [this](api::ListRequest request, ttrpc::CallContext context) {
        return list(std::move(request), std::move(context));
      });
  server_.add<api::InspectRequest, api::InspectResponse>(
      kService, "Inspect", [this](api::InspectRequest request, ttrpc::CallContext context) {
        return inspect(std::move(request), std::move(context));
      });
  server_.add<api::HealthRequest, api::HealthResponse>(
      kService, "Health", [this](api::HealthRequest request, ttrpc::CallContext context) {
        return health(std::move(request), std::move(context));
      });
  server_.add<api::StartExecRequest, api::StartExecResponse>(
      kService, "StartExec", [this](api::StartExecRequest request, ttrpc::CallContext context) {
        return execs_.start(std::move(request), std::move(context));
      });
  server_.add<api::WaitExecRequest, api::WaitExecResponse>(
      kService, "WaitExec", [this](api::WaitExecRequest request, ttrpc::CallContext context) {
        return execs_.wait(std::move(request), std::move(context));
      });
  server_.add<api::ResizeExecRequest, api::ResizeExecResponse>(
      kService, "ResizeExec", [this](api::ResizeExecRequest request, ttrpc::CallContext context) {
        return execs_.resize(std::move(request), std::move(context));
      });
  server_.add<api::CloseExecInputRequest, api::CloseExecInputResponse>(
      kService, "CloseExecInput",
      [this](api::CloseExecInputRequest request, ttrpc::CallContext context) {
        return execs_.close_input(std::move(request), std::move(context));
      });
}

Result<> CtlService::begin() {
  CHECK_OK(execs_.begin());
  TRY(Listener listener, Listener::bind(parts_.store.paths().ctl_socket()));
  listener_.emplace(std::move(listener));
  group_.spawn(server_.serve(listener_->take_fd()));
  group_.spawn(tell_slow_work());
  return {};
}

Task<> CtlService::stop() {
  stopping_.set();
  if (listener_) listener_->remove_file();
  co_await execs_.stop(kStopTimeout);
  co_await server_.stop(kStopTimeout);
  co_await group_.join();
}

// Also in the log, each once.
Task<> CtlService::tell_slow_work() {
  auto told = std::chrono::steady_clock::time_point::min();
  while (!stopping_.is_set()) {
    for (const BlockingPool::Work& work : parts_.pool.older_than(kSlowWork)) {
      if (work.since <= told) continue;
      told = work.since;
      log::warning({}, "work in a thread, begun at {}, takes more than {} s", work.name(),
                   kSlowWork.count());
    }
    co_await stopping_.wait_for(kSlowWork / 3);
  }
}

Task<api::ListResponse> CtlService::pods(std::optional<std::string> only, bool timing) {
  const auto response = std::make_shared<api::ListResponse>();
  std::map<std::string, api::Pod*> by_id;
  for (sandbox::SandboxRecord& record : parts_.pods.records()) {
    if (only && *only != record.state.id()) continue;
    api::Pod* pod = response->add_pods();
    *pod->mutable_state() = std::move(record.state);
    pod->set_problem(std::move(record.problem));
    if (timing && record.timeline) tell(record.timeline, *pod->mutable_timeline());
    by_id[pod->state().id()] = pod;
  }
  std::vector<Naming> containers;
  for (state::v1::ContainerState& record : parts_.tasks.records()) {
    const auto pod = by_id.find(record.sandbox_id());
    if (pod == by_id.end()) continue;
    api::Container* container = pod->second->add_containers();
    *container->mutable_state() = std::move(record);
    // As TaskService::stdio_plan() decides for an init.
    container->set_stdio(container->state().terminal() ? "PUMP" : "PASS");
    const auto timeline = parts_.tasks.timeline_of(container->state().id());
    if (timing && timeline) tell(timeline, *container->mutable_timeline());
    containers.push_back(
        {parts_.store.paths().config_json(container->state().sandbox_id(), container->state().id()),
         container->mutable_name()});
  }
  // The answer lives as long as the work, which cancellation does not cut.
  auto names = [response, containers = std::move(containers)] {
    read_names(containers);
    return true;
  };
  co_await parts_.pool.run(std::move(names));
  co_return std::move(*response);
}

Task<Result<api::ListResponse>> CtlService::list(api::ListRequest, ttrpc::CallContext) {
  api::ListResponse response = co_await pods(std::nullopt, false);
  for (api::Pod& pod : *response.mutable_pods()) shorten(*pod.mutable_state());
  co_return response;
}

Task<Result<api::InspectResponse>> CtlService::inspect(api::InspectRequest request,
                                                       ttrpc::CallContext) {
  CO_CHECK(validate_id("id", request.id()));
  api::ListResponse found = co_await pods(request.id(), request.timing());
  if (found.pods().empty()) co_return fail(Code::kNotFound, "pod {} not found", request.id());
  api::InspectResponse response;
  *response.mutable_pod() = std::move(*found.mutable_pods(0));
  co_return response;
}

Task<Result<api::HealthResponse>> CtlService::health(api::HealthRequest, ttrpc::CallContext) {
  api::HealthResponse response;
  parts_.describe(response);
  for (const sandbox::SandboxRecord& record : parts_.pods.records()) {
    response.set_pods(response.pods() + 1);
    if (record.problem.empty()) continue;
    api::HealthResponse::Unusable* unusable = response.add_unusable();
    unusable->set_id(record.state.id());
    unusable->set_words(record.problem);
  }
  for (const state::v1::ContainerState& record : parts_.tasks.records()) {
    response.set_containers(response.containers() + 1);
    response.set_execs(response.execs() + static_cast<std::uint32_t>(record.execs_size()));
  }
  for (const std::string& path : parts_.store.unexplained()) response.add_unexplained(path);
  for (const BlockingPool::Work& work : parts_.pool.older_than(kSlowWork)) {
    api::HealthResponse::Slow* slow = response.add_slow();
    slow->set_what("work in a thread, begun at " + work.name());
    slow->set_seconds(static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(
                                                     std::chrono::steady_clock::now() - work.since)
                                                     .count()));
  }
  co_return response;
}

}  // namespace kuasar::daemon
