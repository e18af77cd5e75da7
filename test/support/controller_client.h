#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "containerd/services/sandbox/v1/sandbox.pb.h"

namespace kuasar::test {

/// The answer of one Controller call: a google.rpc.Code (0 is OK), the message of a failure and
/// the response.
template <typename Response>
struct ControllerAnswer {
  int code = 0;
  std::string message;
  Response response;
};

/// Calls a sandboxer's Controller service over its gRPC socket as containerd does, but with any
/// content. Blocking, safe from several threads; owns one channel. A call ends at its deadline
/// with DEADLINE_EXCEEDED (4).
class ControllerClient {
 public:
  using Timeout = std::chrono::milliseconds;

  explicit ControllerClient(const std::filesystem::path& socket);
  ~ControllerClient();
  ControllerClient(const ControllerClient&) = delete;
  ControllerClient& operator=(const ControllerClient&) = delete;

  template <typename Response>
  using Answer = ControllerAnswer<Response>;

  Answer<containerd::services::sandbox::v1::ControllerCreateResponse> create(
      const containerd::services::sandbox::v1::ControllerCreateRequest& request);
  Answer<containerd::services::sandbox::v1::ControllerStartResponse> start(const std::string& id);
  Answer<containerd::services::sandbox::v1::ControllerPlatformResponse> platform(
      const std::string& id);
  Answer<containerd::services::sandbox::v1::ControllerStopResponse> stop(const std::string& id);
  Answer<containerd::services::sandbox::v1::ControllerWaitResponse> wait(
      const std::string& id, Timeout timeout = std::chrono::seconds(10));
  Answer<containerd::services::sandbox::v1::ControllerStatusResponse> status(const std::string& id,
                                                                             bool verbose = false);
  Answer<containerd::services::sandbox::v1::ControllerShutdownResponse> shutdown(
      const std::string& id);
  Answer<containerd::services::sandbox::v1::ControllerMetricsResponse> metrics(
      const std::string& id);
  Answer<containerd::services::sandbox::v1::ControllerUpdateResponse> update(const std::string& id);

 private:
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

}  // namespace kuasar::test
