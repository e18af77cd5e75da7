#include "bench/cri_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <utility>

#include "base/wait.h"
#include "cri/runtime/v1/api.grpc.pb.h"

namespace kuasar::bench {

// Channel arguments: a connect that is refused while containerd restarts is tried again soon, not
// after gRPC's seconds; 16 MiB is what containerd itself allows for a message.
struct CriClient::Channel {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<cri::RuntimeService::Stub> runtime;
  std::unique_ptr<cri::ImageService::Stub> images;
  Timeout timeout;

  Channel(const std::filesystem::path& socket, Timeout limit) : timeout(limit) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetMaxReceiveMessageSize(16 << 20);
    channel = grpc::CreateCustomChannel("unix:" + socket.string(),
                                        grpc::InsecureChannelCredentials(), arguments);
    runtime = cri::RuntimeService::NewStub(channel);
    images = cri::ImageService::NewStub(channel);
  }

  template <typename Stub, typename Request, typename Response>
  Result<Response> call(Stub& stub,
                        grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                     Response*),
                        const Request& request) {
    return call_within(stub, method, request, timeout, false);
  }

  template <typename Stub, typename Request, typename Response>
  Result<Response> call_within(Stub& stub,
                               grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                            Response*),
                               const Request& request, Timeout limit, bool wait_for_ready) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + limit);
    context.set_wait_for_ready(wait_for_ready);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok()) {
      return fail(Error{static_cast<Code>(status.error_code()), 0, status.error_message()});
    }
    return response;
  }
};

namespace {

using Runtime = cri::RuntimeService::Stub;
using Images = cri::ImageService::Stub;

template <typename T>
Result<> done(Result<T> result) {
  if (!result) return fail(std::move(result).error());
  return {};
}

}  // namespace

CriClient::CriClient(const std::filesystem::path& socket, Timeout timeout)
    : channel_(std::make_unique<Channel>(socket, timeout)) {}
CriClient::~CriClient() = default;

Result<cri::VersionResponse> CriClient::version(Timeout patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  Result<cri::VersionResponse> answer;
  // Until its plugins are up containerd accepts calls and answers them with UNAVAILABLE.
  const auto answered = [&] {
    const auto left = std::chrono::duration_cast<Timeout>(end - std::chrono::steady_clock::now());
    answer = channel_->call_within(*channel_->runtime, &Runtime::Version, cri::VersionRequest(),
                                   std::max(left, Timeout(1)), true);
    return answer || answer.error().code != Code::kUnavailable;
  };
  wait_until(answered, patience);
  return answer;
}

Result<cri::StatusResponse> CriClient::status() {
  return channel_->call(*channel_->runtime, &Runtime::Status, cri::StatusRequest());
}

Result<std::string> CriClient::run_pod(const cri::PodSandboxConfig& config,
                                       const std::string& handler) {
  cri::RunPodSandboxRequest request;
  *request.mutable_config() = config;
  request.set_runtime_handler(handler);
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::RunPodSandbox, request));
  return response.pod_sandbox_id();
}

Result<> CriClient::stop_pod(const std::string& id) {
  cri::StopPodSandboxRequest request;
  request.set_pod_sandbox_id(id);
  return done(channel_->call(*channel_->runtime, &Runtime::StopPodSandbox, request));
}

Result<> CriClient::remove_pod(const std::string& id) {
  cri::RemovePodSandboxRequest request;
  request.set_pod_sandbox_id(id);
  return done(channel_->call(*channel_->runtime, &Runtime::RemovePodSandbox, request));
}

Result<cri::PodSandboxStatusResponse> CriClient::pod_status(const std::string& id, bool verbose) {
  cri::PodSandboxStatusRequest request;
  request.set_pod_sandbox_id(id);
  request.set_verbose(verbose);
  return channel_->call(*channel_->runtime, &Runtime::PodSandboxStatus, request);
}

Result<std::vector<cri::PodSandbox>> CriClient::list_pods() {
  TRY(auto response,
      channel_->call(*channel_->runtime, &Runtime::ListPodSandbox, cri::ListPodSandboxRequest()));
  return std::vector<cri::PodSandbox>(response.items().begin(), response.items().end());
}

Result<std::string> CriClient::create_container(const std::string& pod,
                                                const cri::ContainerConfig& config,
                                                const cri::PodSandboxConfig& pod_config) {
  cri::CreateContainerRequest request;
  request.set_pod_sandbox_id(pod);
  *request.mutable_config() = config;
  *request.mutable_sandbox_config() = pod_config;
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::CreateContainer, request));
  return response.container_id();
}

Result<> CriClient::start_container(const std::string& id) {
  cri::StartContainerRequest request;
  request.set_container_id(id);
  return done(channel_->call(*channel_->runtime, &Runtime::StartContainer, request));
}

Result<> CriClient::stop_container(const std::string& id, std::int64_t grace_seconds) {
  cri::StopContainerRequest request;
  request.set_container_id(id);
  request.set_timeout(grace_seconds);
  return done(channel_->call(*channel_->runtime, &Runtime::StopContainer, request));
}

Result<> CriClient::remove_container(const std::string& id) {
  cri::RemoveContainerRequest request;
  request.set_container_id(id);
  return done(channel_->call(*channel_->runtime, &Runtime::RemoveContainer, request));
}

Result<cri::ContainerStatus> CriClient::container_status(const std::string& id) {
  cri::ContainerStatusRequest request;
  request.set_container_id(id);
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::ContainerStatus, request));
  return response.status();
}

Result<std::vector<cri::Container>> CriClient::list_containers() {
  TRY(auto response,
      channel_->call(*channel_->runtime, &Runtime::ListContainers, cri::ListContainersRequest()));
  return std::vector<cri::Container>(response.containers().begin(), response.containers().end());
}

Result<cri::ContainerStats> CriClient::container_stats(const std::string& id) {
  cri::ContainerStatsRequest request;
  request.set_container_id(id);
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::ContainerStats, request));
  return response.stats();
}

Result<cri::PodSandboxStats> CriClient::pod_stats(const std::string& id) {
  cri::PodSandboxStatsRequest request;
  request.set_pod_sandbox_id(id);
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::PodSandboxStats, request));
  return response.stats();
}

Result<> CriClient::update_resources(const std::string& id,
                                     const cri::LinuxContainerResources& resources) {
  cri::UpdateContainerResourcesRequest request;
  request.set_container_id(id);
  *request.mutable_linux() = resources;
  return done(channel_->call(*channel_->runtime, &Runtime::UpdateContainerResources, request));
}

Result<cri::ExecSyncResponse> CriClient::exec_sync(const std::string& id,
                                                   const std::vector<std::string>& command,
                                                   std::int64_t timeout_seconds) {
  cri::ExecSyncRequest request;
  request.set_container_id(id);
  for (const std::string& word : command) request.add_cmd(word);
  request.set_timeout(timeout_seconds);
  return channel_->call(*channel_->runtime, &Runtime::ExecSync, request);
}

Result<std::string> CriClient::exec(const cri::ExecRequest& request) {
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::Exec, request));
  return response.url();
}

Result<std::string> CriClient::attach(const cri::AttachRequest& request) {
  TRY(auto response, channel_->call(*channel_->runtime, &Runtime::Attach, request));
  return response.url();
}

Result<bool> CriClient::has_image(const std::string& name) {
  cri::ImageStatusRequest request;
  request.mutable_image()->set_image(name);
  TRY(auto response, channel_->call(*channel_->images, &Images::ImageStatus, request));
  return response.has_image();
}

}  // namespace kuasar::bench
