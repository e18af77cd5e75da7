#include "sandbox/controller_server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "async/task_group.h"
#include "base/ids.h"
#include "base/log.h"
#include "containerd/services/sandbox/v1/sandbox.grpc.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "sandbox/goaway.h"
#include "sandbox/sandbox_manager.h"
#include "task/convert.h"

namespace kuasar::sandbox {
namespace {

namespace api = ::containerd::services::sandbox::v1;
using namespace std::chrono_literals;

// A PodSandboxConfig larger than this is no pod's.
constexpr int kMaxMessage = 4 << 20;
constexpr auto kFinishTimeout = 1s;
// Whoever comes meanwhile waits to be accepted, and containerd does so for 1 s (T27).
constexpr auto kAwayTimeout = 300ms;
constexpr std::uint32_t kTaskApiVersion = 3;

// libprotobuf's words about what a peer sent, spoken on any thread, else go to stderr unescaped.
void log_protobuf(google::protobuf::LogLevel level, const char* file, int line,
                  const std::string& words) {
  const bool fatal = level == google::protobuf::LOGLEVEL_FATAL;
  log::line(fatal ? log::Level::kError : log::Level::kDebug, {}, "protobuf: {} ({}:{})", words,
            file, line);
}

grpc::Status to_status(const Result<>& result) {
  if (result) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(result.error().code), result.error().message};
}

// The names that containerd uses (GOARCH).
std::string architecture() {
  utsname name{};
  ::uname(&name);
  const std::string machine = name.machine;
  if (machine == "x86_64") return "amd64";
  if (machine == "aarch64") return "arm64";
  return machine;
}

/// One unary call: made on a gRPC thread, finished from the io thread.
class Call : public grpc::ServerUnaryReactor {
 public:
  /// `observer` and `method` outlive the call.
  Call(asio::any_io_executor io, const CallObserver& observer, const char* method,
       std::shared_ptr<CallNotes> notes)
      : io_(std::move(io)), observer_(observer), method_(method), notes_(std::move(notes)) {}

 protected:
  /// The last that may be done with it: gRPC deletes it.
  void finish(const Result<>& result) {
    if (observer_.ended) {
      observer_.ended({"Controller", method_, result ? Code::kOk : result.error().code, begun_,
                       std::chrono::steady_clock::now(), notes_.get()});
    }
    Finish(to_status(result));
  }
  void OnDone() override { delete this; }
  const char* method() const { return method_; }

  asio::any_io_executor io_;

 private:
  const CallObserver& observer_;
  const char* method_;
  std::shared_ptr<CallNotes> notes_;
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
};

/// A call that runs as a coroutine.
class CoroCall : public Call {
 public:
  using Body = std::function<Task<Result<>>()>;

  CoroCall(asio::any_io_executor io, TaskGroup& calls, const CallObserver& observer,
           const char* method, std::shared_ptr<CallNotes> notes, Body body)
      : Call(std::move(io), observer, method, std::move(notes)) {
    asio::post(io_, [this, &calls, body = std::move(body)]() mutable {
      calls.spawn(run(this, std::move(body)));
    });
  }

 private:
  static Task<> run(CoroCall* call, Body body) {
    Result<> result;
    try {
      result = co_await body();
    } catch (const std::exception& e) {
      // A defect: of one call, not of every pod's daemon.
      log::error({}, "Controller.{} threw: {}", call->method(), e.what());
      result = fail(Code::kInternal, "Controller.{}: {}", call->method(), e.what());
    }
    call->finish(result);
  }
};

/// Controller.Wait, which containerd holds open for every pod: until it ends it costs no coroutine.
class WaitCall : public Call {
 public:
  WaitCall(asio::any_io_executor io, SandboxManager& manager, const CallObserver& observer,
           std::shared_ptr<CallNotes> notes, const api::ControllerWaitRequest& request,
           api::ControllerWaitResponse& response)
      : Call(std::move(io), observer, "Wait", std::move(notes)),
        response_(response),
        waiting_(std::make_shared<Waiting>()) {
    waiting_->call = this;
    asio::post(io_, [&manager, &request, waiting = waiting_] {
      if (waiting->call == nullptr) return;
      waiting->callback = manager.wait(
          request.sandbox_id(),
          [waiting = waiting.get()](const Result<SandboxExit>& exit) { end(*waiting, exit); });
    });
  }

 private:
  /// Of the io thread; outlives the call while something is still under way to it.
  struct Waiting {
    /// nullptr: it has been finished.
    WaitCall* call = nullptr;
    Event::Callback callback;
  };

  static void end(Waiting& waiting, const Result<SandboxExit>& exit) {
    WaitCall* const call = std::exchange(waiting.call, nullptr);
    if (call == nullptr) return;
    if (!exit) return call->finish(fail(exit.error()));
    call->response_.set_exit_status(exit->exit_status);
    *call->response_.mutable_exited_at() = task::to_timestamp(exit->at);
    call->finish({});
  }

  void OnCancel() override {
    asio::post(io_, [waiting = waiting_] {
      waiting->callback = {};
      end(*waiting, fail(Code::kCancelled, "the caller has gone"));
    });
  }

  void OnDone() override {
    // Its end is the io thread's, too.
    asio::post(io_, [waiting = std::move(waiting_)] {});
    delete this;
  }

  api::ControllerWaitResponse& response_;
  std::shared_ptr<Waiting> waiting_;
};

}  // namespace

struct ControllerServer::Impl : api::Controller::CallbackService {
  Impl(asio::any_io_executor io_executor, SandboxManager& sandbox_manager, BlockingPool& blocking,
       std::string address)
      : io(io_executor),
        manager(sandbox_manager),
        pool(blocking),
        task_address(std::move(address)),
        calls(io_executor) {}

  // For an observer that wants them: what came with the call and whom it is about.
  template <typename Request>
  std::shared_ptr<CallNotes> notes_of(grpc::CallbackServerContext& context,
                                      const Request& request) const {
    if (!observer.wants_notes) return nullptr;
    auto notes = std::make_shared<CallNotes>();
    const auto found = context.client_metadata().find("traceparent");
    if (found != context.client_metadata().end()) {
      notes->traceparent.assign(found->second.data(), found->second.size());
    }
    notes->sandbox = std::string(request.sandbox_id()).substr(0, kMaxIdLength);
    return notes;
  }

  template <typename Request>
  static void log_call(const char* method, const Request& request) {
    // Not validated yet.
    log::debug({std::string_view(request.sandbox_id()).substr(0, 100), {}}, "Controller.{}",
               method);
  }

  template <typename Request, typename Body>
  grpc::ServerUnaryReactor* call(const char* method, grpc::CallbackServerContext* context,
                                 const Request& request, Body body) {
    log_call(method, request);
    std::shared_ptr<CallNotes> notes = notes_of(*context, request);
    return new CoroCall(io, calls, observer, method, notes,
                        [this, method, body = std::move(body), notes] {
                          Task<Result<>> task = body();
                          const std::string_view name = method;
                          if (!notes || (name != "Create" && name != "Start")) return task;
                          return with_timeline(std::move(task), notes);
                        });
  }

  // A start that fails takes the pod's timeline with it: looked for before and after.
  Task<Result<>> with_timeline(Task<Result<>> body, std::shared_ptr<CallNotes> notes) {
    notes->timeline = manager.timeline_of(notes->sandbox);
    Result<> result = co_await std::move(body);
    if (!notes->timeline) notes->timeline = manager.timeline_of(notes->sandbox);
    co_return result;
  }

  static Timeline::Clock::time_point now() { return Timeline::Clock::now(); }

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* Create(Context* context, const api::ControllerCreateRequest* request,
                  api::ControllerCreateResponse* response) override {
    return call("Create", context, *request, [this, request, response, arrived = now()] {
      return do_create(request, response, arrived);
    });
  }
  Reactor* Start(Context* context, const api::ControllerStartRequest* request,
                 api::ControllerStartResponse* response) override {
    return call("Start", context, *request, [this, request, response, arrived = now()] {
      return do_start(request, response, arrived);
    });
  }
  Reactor* Platform(Context* context, const api::ControllerPlatformRequest* request,
                    api::ControllerPlatformResponse* response) override {
    return call("Platform", context, *request,
                [this, request, response] { return do_platform(request, response); });
  }
  // timeout_secs has nothing to bound: containerd has ended the containers before, each with its
  // own grace (CRI sends 0); those that are left, and a shared init, get SIGKILL at once.
  Reactor* Stop(Context* context, const api::ControllerStopRequest* request,
                api::ControllerStopResponse*) override {
    return call("Stop", context, *request,
                [this, request] { return manager.stop(request->sandbox_id()); });
  }
  Reactor* Wait(Context* context, const api::ControllerWaitRequest* request,
                api::ControllerWaitResponse* response) override {
    log_call("Wait", *request);
    return new WaitCall(io, manager, observer, notes_of(*context, *request), *request, *response);
  }
  Reactor* Status(Context* context, const api::ControllerStatusRequest* request,
                  api::ControllerStatusResponse* response) override {
    return call("Status", context, *request,
                [this, request, response] { return do_status(request, response); });
  }
  Reactor* Shutdown(Context* context, const api::ControllerShutdownRequest* request,
                    api::ControllerShutdownResponse*) override {
    return call("Shutdown", context, *request,
                [this, request] { return manager.shutdown(request->sandbox_id()); });
  }
  Reactor* Metrics(Context* context, const api::ControllerMetricsRequest* request,
                   api::ControllerMetricsResponse* response) override {
    return call("Metrics", context, *request,
                [this, request, response] { return do_metrics(request, response); });
  }
  Reactor* Update(Context* context, const api::ControllerUpdateRequest* request,
                  api::ControllerUpdateResponse*) override {
    return call("Update", context, *request, [this, request] { return do_update(request); });
  }

  Task<Result<>> do_create(const api::ControllerCreateRequest* request,
                           api::ControllerCreateResponse* response,
                           Timeline::Clock::time_point arrived) {
    state::v1::SandboxState record;
    record.set_id(request->sandbox_id());
    record.set_netns_path(request->netns_path());
    if (!task::unpack_any(request->options(), *record.mutable_config())) {
      co_return fail(Code::kInvalidArgument,
                     "options: expected a runtime.v1.PodSandboxConfig, got \"{}\"",
                     request->options().type_url());
    }
    CO_CHECK(co_await manager.create(std::move(record), arrived));
    response->set_sandbox_id(request->sandbox_id());
    co_return Result<>();
  }

  Task<Result<>> do_start(const api::ControllerStartRequest* request,
                          api::ControllerStartResponse* response,
                          Timeline::Clock::time_point arrived) {
    CO_TRY(const SandboxStatus status, co_await manager.start(request->sandbox_id(), arrived));
    response->set_sandbox_id(request->sandbox_id());
    *response->mutable_created_at() = task::to_timestamp(status.created_at);
    response->set_address(task_address);
    response->set_version(kTaskApiVersion);
    CO_TRY(*response->mutable_spec(), manager.spec(request->sandbox_id()));
    // T19: without it each container of the pod would get an MCS level of its own.
    if (!status.selinux_label.empty()) {
      (*response->mutable_labels())["selinux_label"] = status.selinux_label;
    }
    co_return Result<>();
  }

  Task<Result<>> do_platform(const api::ControllerPlatformRequest* request,
                             api::ControllerPlatformResponse* response) {
    CO_CHECK(manager.check_exists(request->sandbox_id()));
    response->mutable_platform()->set_os("linux");
    response->mutable_platform()->set_architecture(architecture());
    co_return Result<>();
  }

  Task<Result<>> do_status(const api::ControllerStatusRequest* request,
                           api::ControllerStatusResponse* response) {
    CO_TRY(const SandboxStatus status, manager.status(request->sandbox_id(), request->verbose()));
    response->set_sandbox_id(request->sandbox_id());
    response->set_state(status.ready ? "SANDBOX_READY" : "SANDBOX_NOTREADY");
    *response->mutable_created_at() = task::to_timestamp(status.created_at);
    if (!status.ready) *response->mutable_exited_at() = task::to_timestamp(status.exited_at);
    response->set_address(task_address);
    response->set_version(kTaskApiVersion);
    if (request->verbose()) (*response->mutable_info())["info"] = status.info;
    co_return Result<>();
  }

  Task<Result<>> do_metrics(const api::ControllerMetricsRequest* request,
                            api::ControllerMetricsResponse* response) {
    CO_TRY(*response->mutable_metrics()->mutable_data(),
           co_await manager.metrics(request->sandbox_id()));
    response->mutable_metrics()->set_id(request->sandbox_id());
    *response->mutable_metrics()->mutable_timestamp() =
        task::to_timestamp(std::chrono::system_clock::now());
    co_return Result<>();
  }

  // Kuasar's own containerd sends "extensions.tasks"; what that asks for happens at Task.Create.
  Task<Result<>> do_update(const api::ControllerUpdateRequest* request) {
    CO_CHECK(manager.check_exists(request->sandbox_id()));
    for (const std::string& field : request->fields()) {
      if (field != "extensions.tasks") {
        co_return fail(Code::kUnimplemented, "Update of \"{}\" is not supported by this version",
                       field.substr(0, 100));
      }
    }
    log::debug({request->sandbox_id(), {}}, "Update of extensions.tasks: nothing to do");
    co_return Result<>();
  }

  Task<> accept_loop(UniqueFd listener) {
    asio::local::stream_protocol::acceptor incoming(io, asio::local::stream_protocol(),
                                                    listener.release());
    acceptor = &incoming;
    while (!stopping) {
      boost::system::error_code ec;
      asio::local::stream_protocol::socket socket = co_await incoming.async_accept(as_result(ec));
      if (stopping) break;
      if (ec) {
        log::error({}, "accept on the Controller's socket: {}", ec.message());
        co_await sleep_for(100ms);
        continue;
      }
      admit(socket);
    }
    acceptor = nullptr;
  }

  void admit(asio::local::stream_protocol::socket& socket) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
        (peer.uid != 0 && peer.uid != ::geteuid())) {
      log::warning({}, "refused a Controller connection of uid {} (pid {})", peer.uid, peer.pid);
      return;
    }
    socket.native_non_blocking(true);
    boost::system::error_code ec;
    const int fd = socket.release(ec);
    if (ec) {
      log::error({}, "release of an accepted socket: {}", ec.message());
      return;
    }
    connections.add(fd);
    grpc::AddInsecureChannelFromFd(server.get(), fd);
  }

  asio::any_io_executor io;
  SandboxManager& manager;
  BlockingPool& pool;
  std::string task_address;
  TaskGroup calls;
  CallObserver observer;
  std::unique_ptr<grpc::Server> server;
  GrpcConnections connections;
  asio::local::stream_protocol::acceptor* acceptor = nullptr;
  bool stopping = false;
};

ControllerServer::ControllerServer(asio::any_io_executor io, SandboxManager& manager,
                                   BlockingPool& pool, std::string task_address)
    : impl_(std::make_unique<Impl>(std::move(io), manager, pool, std::move(task_address))) {
  google::protobuf::SetLogHandler(&log_protobuf);
  grpc::ServerBuilder builder;
  builder.RegisterService(impl_.get());
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  // Each filter has its part in every call, and each pod has a call: what containerd does not use
  // is left out.
  for (const char* feature :
       {GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION,
        GRPC_ARG_ENABLE_DEADLINE_CHECKS, GRPC_ARG_ENABLE_CHANNELZ}) {
    builder.AddChannelArgument(feature, 0);
  }
  impl_->server = builder.BuildAndStart();
}

ControllerServer::~ControllerServer() = default;

void ControllerServer::observe(CallObserver observer) {
  impl_->observer = std::move(observer);
}

Task<> ControllerServer::serve(UniqueFd listener) {
  return impl_->accept_loop(std::move(listener));
}

Task<> ControllerServer::stop() {
  co_await impl_->calls.join();
  impl_->stopping = true;
  if (impl_->acceptor != nullptr) impl_->acceptor->cancel();
  auto send_away = [this] {
    impl_->connections.send_away(kAwayTimeout);
    return true;
  };
  co_await impl_->pool.run(std::move(send_away));
  // Waits for gRPC's threads, which wait for nothing of the io thread any more but OnDone.
  auto close = [server = impl_->server.get()] {
    server->Shutdown(std::chrono::system_clock::now() + kFinishTimeout);
    server->Wait();
    return true;
  };
  co_await impl_->pool.run(std::move(close));
  co_await impl_->calls.join();
}

}  // namespace kuasar::sandbox
