#pragma once

#include <atomic>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

#include "support/cri_client.h"

namespace kuasar::test {

/// Asks ListPodSandbox and ListContainers without a pause, on a thread of its own, for as long as
/// it lives: so many pods must be READY and so many containers RUNNING in every answer.
class Watch {
 public:
  Watch(const std::filesystem::path& socket, std::size_t pods, std::size_t containers);
  ~Watch() { stop(); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  void stop();
  int asked() const { return asked_; }
  /// Waits until so many more questions were answered; false when that takes too long.
  bool ask_more(int questions) const;
  /// Containers that the test itself ends are not expected any more.
  void expect_containers(std::size_t count) { containers_ = count; }
  /// The first answer that was not as it must be; empty when there was none.
  std::string complaint();

 private:
  void watch();
  std::string look();

  CriClient client_;
  std::size_t pods_;
  std::atomic<std::size_t> containers_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> asked_{0};
  std::mutex mutex_;
  std::string complaint_;
  std::thread thread_;
};

}  // namespace kuasar::test
