#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "cri/runtime/v1/api.pb.h"

namespace kuasar::bench {

namespace cri = ::runtime::v1;

/// Calls containerd's CRI service as a kubelet does. Blocking, safe from several threads; owns one
/// channel. Every failure carries the server's code and words; a call that takes longer than
/// `timeout()` ends with kDeadlineExceeded. Times in nanoseconds, as everywhere in CRI.
class CriClient {
 public:
  using Timeout = std::chrono::milliseconds;

  explicit CriClient(const std::filesystem::path& socket,
                     Timeout timeout = std::chrono::seconds(60));
  ~CriClient();
  CriClient(const CriClient&) = delete;
  CriClient& operator=(const CriClient&) = delete;

  /// Waits for the server to come up within `patience`. containerd answers this one only when it
  /// has recovered its pods.
  Result<cri::VersionResponse> version(Timeout patience);
  Result<cri::StatusResponse> status();

  /// Returns the sandbox's id.
  Result<std::string> run_pod(const cri::PodSandboxConfig& config, const std::string& handler);
  Result<> stop_pod(const std::string& id);
  Result<> remove_pod(const std::string& id);
  Result<cri::PodSandboxStatusResponse> pod_status(const std::string& id, bool verbose = false);
  Result<std::vector<cri::PodSandbox>> list_pods();

  /// Returns the container's id.
  Result<std::string> create_container(const std::string& pod, const cri::ContainerConfig& config,
                                       const cri::PodSandboxConfig& pod_config);
  Result<> start_container(const std::string& id);
  Result<> stop_container(const std::string& id, std::int64_t grace_seconds);
  Result<> remove_container(const std::string& id);
  Result<cri::ContainerStatus> container_status(const std::string& id);
  Result<std::vector<cri::Container>> list_containers();
  Result<cri::ContainerStats> container_stats(const std::string& id);
  Result<cri::PodSandboxStats> pod_stats(const std::string& id);
  Result<> update_resources(const std::string& id, const cri::LinuxContainerResources& resources);
  Result<cri::ExecSyncResponse> exec_sync(const std::string& id,
                                          const std::vector<std::string>& command,
                                          std::int64_t timeout_seconds);

  /// URL of a stream, for StreamClient.
  Result<std::string> exec(const cri::ExecRequest& request);
  Result<std::string> attach(const cri::AttachRequest& request);

  /// Whether CRI knows an image by that name.
  Result<bool> has_image(const std::string& name);

 private:
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

/// One stream's bytes out of a container log in CRI's format. An entry tagged F stands for a line
/// with its newline, one tagged P for bytes that go on in the next entry or, at the end, for a last
/// line without a newline.
struct CriLog {
  std::string out;
  std::string err;
};

/// Parses a log; kInvalidArgument with the entry's number when it is not in that format.
Result<CriLog> parse_cri_log(const std::string& text);

/// When containerd read the first entry of a log; kInvalidArgument when there is none.
Result<std::chrono::system_clock::time_point> first_log_time(const std::string& text);

}  // namespace kuasar::bench
