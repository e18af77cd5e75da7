#include "daemon/ctl_exec.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/ids.h"
#include "base/log.h"
#include "containerd/task/v3/task.pb.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "oci/process.h"
#include "oci/spec.h"
#include "sandbox/remove_tree.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;
namespace api = ::containerd::task::v3;

constexpr std::string_view kPrefix = "ctl-";
constexpr std::size_t kMaxExecId = 64;
constexpr const char* kProcessType = "types.containerd.io/opencontainers/runtime-spec/1/Process";

// Execs of containerd are not for kuasar-ctl to touch.
Result<> check_exec_id(const std::string& id) {
  CHECK_OK(validate_id("id", id));
  if (!id.starts_with(kPrefix) || id.size() > kMaxExecId) {
    return fail(Code::kInvalidArgument, "id: \"{}\" is no \"{}\" and at most {} characters", id,
                kPrefix, kMaxExecId - kPrefix.size());
  }
  return {};
}

template <typename Request>
Request about(const std::string& container, const std::string& exec) {
  Request request;
  request.set_id(container);
  request.set_exec_id(exec);
  return request;
}

// The path of a FIFO that the caller made, or nothing.
std::string stream(const std::filesystem::path& dir, const char* name) {
  const std::string path = dir / name;
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0 && S_ISFIFO(st.st_mode) ? path : "";
}

Error no_container(const std::string& id) {
  return Error::make(Code::kNotFound, "container {} not found", id.substr(0, kMaxIdLength));
}

}  // namespace

CtlExecs::CtlExecs(asio::any_io_executor executor, BlockingPool& pool,
                   const sandbox::StatePaths& paths, task::TaskService& tasks)
    : pool_(pool), paths_(paths), tasks_(tasks), group_(std::move(executor)) {}

Result<> CtlExecs::begin() {
  CHECK_OK(sandbox::remove_tree(paths_.ctl_execs()));
  CHECK_OK(make_dir(paths_.ctl_execs(), 0700));
  for (const state::v1::ContainerState& container : tasks_.records()) {
    for (const state::v1::ExecState& exec : container.execs()) {
      if (!exec.id().starts_with(kPrefix)) continue;
      log::info({container.sandbox_id(), container.id()},
                "exec {} of kuasar-ctl has lost its daemon: ended", exec.id());
      group_.spawn(end(container.id(), exec.id()));
    }
  }
  return {};
}

Task<> CtlExecs::stop(std::chrono::nanoseconds grace) {
  stopping_.set();
  const auto deadline = std::chrono::steady_clock::now() + grace;
  while (group_.size() > 0) {
    // One signal ends one wait; a task may have several ahead of it.
    if (std::chrono::steady_clock::now() >= deadline) group_.cancel();
    co_await sleep_for(5ms);
  }
}

// The config.json that the OCI runtime got.
Task<Result<std::string>> CtlExecs::process_of(
    std::shared_ptr<const ctl::v1::StartExecRequest> request) {
  for (const state::v1::ContainerState& container : tasks_.records()) {
    if (container.id() != request->container()) continue;
    auto derive = [request, file = paths_.config_json(container.sandbox_id(),
                                                      container.id())]() -> Result<std::string> {
      TRY(const std::string config, read_file(file, oci::kMaxSpecBytes));
      oci::Command command;
      command.args.assign(request->args().begin(), request->args().end());
      command.env.assign(request->env().begin(), request->env().end());
      command.cwd = request->cwd();
      command.terminal = request->terminal();
      return oci::process_like(config, command);
    };
    co_return co_await pool_.run(std::move(derive));
  }
  co_return fail(no_container(request->container()));
}

Task<Result<ctl::v1::StartExecResponse>> CtlExecs::start(ctl::v1::StartExecRequest request,
                                                         ttrpc::CallContext context) {
  CO_CHECK(check_exec_id(request.id()));
  CO_CHECK(validate_id("container", request.container()));
  const std::string id = request.id();
  const std::string container = request.container();
  const auto shared = std::make_shared<const ctl::v1::StartExecRequest>(std::move(request));
  CO_TRY(std::string process, co_await process_of(shared));
  if (stopping_.is_set()) co_return fail(Code::kUnavailable, "the sandboxer is stopping");

  auto exec = about<api::ExecProcessRequest>(container, id);
  const std::filesystem::path dir = paths_.ctl_exec(id);
  exec.set_terminal(shared->terminal());
  exec.set_stdin(stream(dir, "stdin"));
  exec.set_stdout(stream(dir, "stdout"));
  if (!shared->terminal()) exec.set_stderr(stream(dir, "stderr"));
  exec.mutable_spec()->set_type_url(kProcessType);
  exec.mutable_spec()->set_value(std::move(process));
  CO_CHECK(co_await tasks_.exec(std::move(exec), context));
  group_.spawn(tend(container, id, context.peer));
  if (shared->terminal() && shared->width() > 0 && shared->height() > 0) {
    auto size = about<api::ResizePtyRequest>(container, id);
    size.set_width(shared->width());
    size.set_height(shared->height());
    CO_CHECK(co_await tasks_.resize_pty(std::move(size), context));
  }
  auto start = about<api::StartRequest>(container, id);
  CO_TRY(const api::StartResponse started, co_await tasks_.start(std::move(start), context));
  ctl::v1::StartExecResponse response;
  response.set_pid(static_cast<std::int32_t>(started.pid()));
  co_return response;
}

Task<Result<ctl::v1::WaitExecResponse>> CtlExecs::wait(ctl::v1::WaitExecRequest request,
                                                       ttrpc::CallContext context) {
  CO_CHECK(check_exec_id(request.id()));
  CO_TRY(const api::WaitResponse end,
         co_await tasks_.await_exit(request.container(), request.id(), context.peer));
  if (stopping_.is_set()) {
    co_return fail(Code::kUnavailable, "the sandboxer is stopping and has ended the command");
  }
  ctl::v1::WaitExecResponse response;
  response.set_exit_status(end.exit_status());
  co_return response;
}

// The caller reads what is left of the output before it closes its connection.
Task<> CtlExecs::tend(std::string container, std::string exec, std::shared_ptr<ttrpc::Peer> peer) {
  std::vector<const Event*> events = {&peer->closed_event(), &stopping_};
  co_await Event::wait_any(std::move(events));
  co_await end(container, exec);
  auto remove = [dir = paths_.ctl_exec(exec)] { return sandbox::remove_tree(dir); };
  if (Result<> removed = co_await pool_.run(std::move(remove)); !removed) {
    log::warning({}, "{}", removed.error().message);
  }
}

Task<> CtlExecs::end(std::string container, std::string exec) {
  auto kill = about<api::KillRequest>(container, exec);
  kill.set_signal(SIGKILL);
  ttrpc::CallContext context;
  // One that has ended, or never began, has nothing to kill.
  (void)co_await tasks_.kill(std::move(kill), context);
  auto remove = about<api::DeleteRequest>(container, exec);
  Result<api::DeleteResponse> removed = co_await tasks_.remove(remove, context);
  if (removed || removed.error().code == Code::kNotFound) co_return;
  (void)co_await tasks_.await_exit(container, exec, nobody_);
  removed = co_await tasks_.remove(std::move(remove), context);
  if (removed || removed.error().code == Code::kNotFound) co_return;
  log::warning({{}, container}, "{}", removed.error().message);
}

Task<Result<ctl::v1::ResizeExecResponse>> CtlExecs::resize(ctl::v1::ResizeExecRequest request,
                                                           ttrpc::CallContext context) {
  CO_CHECK(check_exec_id(request.id()));
  auto size = about<api::ResizePtyRequest>(request.container(), request.id());
  size.set_width(request.width());
  size.set_height(request.height());
  CO_CHECK(co_await tasks_.resize_pty(std::move(size), std::move(context)));
  co_return ctl::v1::ResizeExecResponse();
}

Task<Result<ctl::v1::CloseExecInputResponse>> CtlExecs::close_input(
    ctl::v1::CloseExecInputRequest request, ttrpc::CallContext context) {
  CO_CHECK(check_exec_id(request.id()));
  // The exec's id is in the request, so that it is never the container's own input.
  auto close = about<api::CloseIORequest>(request.container(), request.id());
  close.set_stdin(true);
  CO_CHECK(co_await tasks_.close_io(std::move(close), std::move(context)));
  co_return ctl::v1::CloseExecInputResponse();
}

}  // namespace kuasar::daemon
