#pragma once

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace ttrpc {
class Request;
class Response;
}  // namespace ttrpc

namespace kuasar::test {

/// A plugin of containerd's node resource interface that hears of every RunPodSandbox and can make
/// it fail. A thread of its own answers containerd, which takes it into its row a moment after the
/// constructor: heard() says so. It is gone with the object. The constructor throws
/// std::system_error where there is no socket.
class NriPlugin {
 public:
  explicit NriPlugin(const std::filesystem::path& socket);
  ~NriPlugin();
  NriPlugin(const NriPlugin&) = delete;
  NriPlugin& operator=(const NriPlugin&) = delete;

  /// From now on every RunPodSandbox is answered with an error that holds kWords, or with success.
  void refuse(bool on) { refuse_ = on; }
  /// How many it has heard of.
  int heard() const { return heard_; }

  static constexpr const char* kWords = "the test's plugin says no";

 private:
  void serve();
  ::ttrpc::Response answer(const ::ttrpc::Request& request);

  UniqueFd socket_;
  std::atomic<bool> refuse_{false};
  std::atomic<int> heard_{0};
  std::thread thread_;
};

}  // namespace kuasar::test
