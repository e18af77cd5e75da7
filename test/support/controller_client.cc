#include "support/controller_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "containerd/services/sandbox/v1/sandbox.grpc.pb.h"

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
