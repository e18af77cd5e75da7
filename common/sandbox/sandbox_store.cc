#include "sandbox/sandbox_store.h"

#include <grpcpp/grpcpp.h>

#include <boost/asio/post.hpp>
#include <chrono>
#include <functional>
#include <utility>

#include "async/event.h"
#include "containerd/services/namespaces/v1/namespace.grpc.pb.h"
#include "containerd/services/sandbox/v1/sandbox.grpc.pb.h"

namespace kuasar::sandbox {
namespace {

namespace api = ::containerd::services::sandbox::v1;
namespace names = ::containerd::services::namespaces::v1;

constexpr std::chrono::seconds kTimeout(5);
// Every sandbox comes with its whole PodSandboxConfig.
constexpr int kMaxAnswer = 256 << 20;

/// Shared with gRPC's callback, which may come when nobody waits any more.
template <class Service, class Request, class Response>
struct Query {
  grpc::ClientContext context;
  Request request;
  Response response;
  grpc::Status status;
  std::unique_ptr<typename Service::Stub> stub;
  /// Belongs to the io thread.
  Event done;
};
using NamespacesQuery =
    Query<names::Namespaces, names::ListNamespacesRequest, names::ListNamespacesResponse>;
using SandboxesQuery = Query<api::Store, api::StoreListRequest, api::StoreListResponse>;

class ContainerdStore : public SandboxStore {
 public:
  ContainerdStore(asio::any_io_executor io, std::string socket)
      : io_(std::move(io)), socket_(std::move(socket)) {}

  // A pod of another namespace ("k8s.io" is CRI's) is as much alive as one of CRI's.
  Task<Result<std::set<std::string>>> list() override {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxAnswer);
    const std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(
        "unix://" + socket_, grpc::InsecureChannelCredentials(), arguments);
    const auto namespaces = std::make_shared<NamespacesQuery>();
    namespaces->stub = names::Namespaces::NewStub(channel);
    CO_CHECK(co_await ask(namespaces));
    std::set<std::string> ids;
    for (const auto& one : namespaces->response.namespaces()) {
      const auto sandboxes = std::make_shared<SandboxesQuery>();
      sandboxes->stub = api::Store::NewStub(channel);
      sandboxes->context.AddMetadata("containerd-namespace", one.name());
      CO_CHECK(co_await ask(sandboxes));
      for (const auto& sandbox : sandboxes->response.list()) ids.insert(sandbox.sandbox_id());
    }
    co_return ids;
  }

  void cancel() override {
    if (cancel_) cancel_();
  }

 private:
  template <class AnyQuery>
  Task<Result<>> ask(std::shared_ptr<AnyQuery> query) {
    query->context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    cancel_ = [query] { query->context.TryCancel(); };
    query->stub->async()->List(&query->context, &query->request, &query->response,
                               [io = io_, query](grpc::Status status) {
                                 query->status = std::move(status);
                                 asio::post(io, [query] { query->done.set(); });
                               });
    // Also when we are cancelled: gRPC calls back into the executor.
    while (!query->done.is_set()) co_await query->done.wait_for(kTimeout);
    cancel_ = nullptr;
    if (query->status.ok()) co_return Result<>();
    co_return fail(Code::kUnavailable, "containerd's sandbox store at {} does not answer: {}",
                   socket_, query->status.error_message());
  }

  asio::any_io_executor io_;
  std::string socket_;
  /// Of the call that is under way.
  std::function<void()> cancel_;
};

}  // namespace

std::unique_ptr<SandboxStore> containerd_store(asio::any_io_executor io, std::string socket) {
  return std::make_unique<ContainerdStore>(std::move(io), std::move(socket));
}

}  // namespace kuasar::sandbox
