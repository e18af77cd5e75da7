#include "sandbox/sandbox_store.h"

#include <grpcpp/grpcpp.h>

#include <boost/asio/post.hpp>
#include <chrono>
#include <utility>

#include "async/event.h"
#include "containerd/services/sandbox/v1/sandbox.grpc.pb.h"

namespace kuasar::sandbox {
namespace {

namespace api = ::containerd::services::sandbox::v1;

constexpr std::chrono::seconds kTimeout(5);
// Every sandbox comes with its whole PodSandboxConfig.
constexpr int kMaxAnswer = 256 << 20;

/// Shared with gRPC's callback, which may come when nobody waits any more.
struct Query {
  grpc::ClientContext context;
  api::StoreListRequest request;
  api::StoreListResponse response;
  grpc::Status status;
  std::unique_ptr<api::Store::Stub> stub;
  /// Belongs to the io thread.
  Event done;
};

class ContainerdStore : public SandboxStore {
 public:
  ContainerdStore(asio::any_io_executor io, std::string socket)
      : io_(std::move(io)), socket_(std::move(socket)) {}

  Task<Result<std::set<std::string>>> list() override {
    const auto query = std::make_shared<Query>();
    query->context.AddMetadata("containerd-namespace", "k8s.io");
    query->context.set_deadline(std::chrono::system_clock::now() + kTimeout);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxAnswer);
    query->stub = api::Store::NewStub(grpc::CreateCustomChannel(
        "unix://" + socket_, grpc::InsecureChannelCredentials(), arguments));
    query_ = query;
    query->stub->async()->List(&query->context, &query->request, &query->response,
                               [io = io_, query](grpc::Status status) {
                                 query->status = std::move(status);
                                 asio::post(io, [query] { query->done.set(); });
                               });
    // Also when we are cancelled: gRPC calls back into the executor.
    while (!query->done.is_set()) co_await query->done.wait_for(kTimeout);
    query_.reset();
    if (!query->status.ok()) {
      co_return fail(Code::kUnavailable, "containerd's sandbox store at {} does not answer: {}",
                     socket_, query->status.error_message());
    }
    std::set<std::string> ids;
    for (const auto& sandbox : query->response.list()) ids.insert(sandbox.sandbox_id());
    co_return ids;
  }

  void cancel() override {
    if (query_) query_->context.TryCancel();
  }

 private:
  asio::any_io_executor io_;
  std::string socket_;
  std::shared_ptr<Query> query_;
};

}  // namespace

std::unique_ptr<SandboxStore> containerd_store(asio::any_io_executor io, std::string socket) {
  return std::make_unique<ContainerdStore>(std::move(io), std::move(socket));
}

}  // namespace kuasar::sandbox
