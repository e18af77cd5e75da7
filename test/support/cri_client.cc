#include "support/cri_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <utility>

#include "cri/runtime/v1/api.grpc.pb.h"
#include "support/wait.h"

namespace kuasar::test {

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

}  // namespace kuasar::test

// ---- ControllerClient (support/controller_client.h) -------------------------------------------
// Here because gRPC headers are allowed in one .cc of the tests.

#include "containerd/services/sandbox/v1/sandbox.grpc.pb.h"
#include "support/controller_client.h"

namespace kuasar::test {

namespace controller_api = containerd::services::sandbox::v1;

struct ControllerClient::Channel {
  std::unique_ptr<controller_api::Controller::Stub> stub;
};

namespace {

constexpr std::chrono::seconds kControllerTimeout(30);

template <typename Request>
Request for_sandbox(const std::string& id) {
  Request request;
  request.set_sandbox_id(id);
  return request;
}

template <typename Response, typename Method, typename Request>
ControllerAnswer<Response> call_controller(controller_api::Controller::Stub& stub, Method method,
                                           const Request& request,
                                           std::chrono::milliseconds timeout = kControllerTimeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  context.AddMetadata("containerd-namespace", "k8s.io");
  ControllerAnswer<Response> answer;
  const grpc::Status status = (stub.*method)(&context, request, &answer.response);
  answer.code = static_cast<int>(status.error_code());
  answer.message = status.error_message();
  return answer;
}

}  // namespace

ControllerClient::ControllerClient(const std::filesystem::path& socket)
    : channel_(std::make_unique<Channel>()) {
  grpc::ChannelArguments arguments;
  // Channels to one address share their connection and its back-off otherwise, also with a daemon
  // that has been replaced meanwhile.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_->stub = controller_api::Controller::NewStub(grpc::CreateCustomChannel(
      "unix://" + socket.native(), grpc::InsecureChannelCredentials(), arguments));
}

ControllerClient::~ControllerClient() = default;

ControllerAnswer<controller_api::ControllerCreateResponse> ControllerClient::create(
    const controller_api::ControllerCreateRequest& request) {
  return call_controller<controller_api::ControllerCreateResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Create, request);
}

ControllerAnswer<controller_api::ControllerStartResponse> ControllerClient::start(
    const std::string& id) {
  return call_controller<controller_api::ControllerStartResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Start,
      for_sandbox<controller_api::ControllerStartRequest>(id));
}

ControllerAnswer<controller_api::ControllerPlatformResponse> ControllerClient::platform(
    const std::string& id) {
  return call_controller<controller_api::ControllerPlatformResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Platform,
      for_sandbox<controller_api::ControllerPlatformRequest>(id));
}

ControllerAnswer<controller_api::ControllerStopResponse> ControllerClient::stop(
    const std::string& id) {
  return call_controller<controller_api::ControllerStopResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Stop,
      for_sandbox<controller_api::ControllerStopRequest>(id));
}

ControllerAnswer<controller_api::ControllerWaitResponse> ControllerClient::wait(
    const std::string& id, Timeout timeout) {
  return call_controller<controller_api::ControllerWaitResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Wait,
      for_sandbox<controller_api::ControllerWaitRequest>(id), timeout);
}

ControllerAnswer<controller_api::ControllerStatusResponse> ControllerClient::status(
    const std::string& id, bool verbose) {
  auto request = for_sandbox<controller_api::ControllerStatusRequest>(id);
  request.set_verbose(verbose);
  return call_controller<controller_api::ControllerStatusResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Status, request);
}

ControllerAnswer<controller_api::ControllerShutdownResponse> ControllerClient::shutdown(
    const std::string& id) {
  return call_controller<controller_api::ControllerShutdownResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Shutdown,
      for_sandbox<controller_api::ControllerShutdownRequest>(id));
}

ControllerAnswer<controller_api::ControllerMetricsResponse> ControllerClient::metrics(
    const std::string& id) {
  return call_controller<controller_api::ControllerMetricsResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Metrics,
      for_sandbox<controller_api::ControllerMetricsRequest>(id));
}

ControllerAnswer<controller_api::ControllerUpdateResponse> ControllerClient::update(
    const std::string& id) {
  return call_controller<controller_api::ControllerUpdateResponse>(
      *channel_->stub, &controller_api::Controller::Stub::Update,
      for_sandbox<controller_api::ControllerUpdateRequest>(id));
}

}  // namespace kuasar::test
