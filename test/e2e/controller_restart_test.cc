#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "e2e/hostile_stage.h"
#include "support/controller_client.h"

namespace kuasar::test {
namespace {

constexpr int kOk = 0;
constexpr int kDeadlineExceeded = 4;
constexpr int kUnavailable = 14;

/// Callers that make the same call over and over until the end, and how often it ended how.
class Callers {
 public:
  template <typename Call>
  Callers(const LoneDaemon& daemon, int count, Call call) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this, &daemon, call] {
        ControllerClient client(daemon.listen());
        while (!ending_) {
          const auto [code, message] = call(client);
          const std::lock_guard lock(mutex_);
          ++ends_[{code, message}];
        }
      });
    }
  }

  std::map<std::pair<int, std::string>, int> end() {
    ending_ = true;
    threads_.clear();
    return ends_;
  }

 private:
  std::atomic<bool> ending_{false};
  std::mutex mutex_;
  std::map<std::pair<int, std::string>, int> ends_;
  std::vector<std::jthread> threads_;
};

}  // namespace

TEST_CASE("T16: a Controller call at the moment of a restart succeeds, and a Wait is UNAVAILABLE",
          "[root][e2e]") {
  constexpr int kRestarts = 20;
  WitnessStage stage;
  Callers waits(stage.daemon, 8, [](ControllerClient& client) {
    const auto answer = client.wait("witness", std::chrono::milliseconds(500));
    return std::pair(answer.code, answer.message);
  });
  Callers statuses(stage.daemon, 4, [](ControllerClient& client) {
    const auto answer = client.status("witness");
    return std::pair(answer.code, answer.message);
  });
  for (int i = 0; i < kRestarts; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(stage.daemon.stop().code == 0);
    stage.daemon.start();
  }
  for (const auto& [end, times] : waits.end()) {
    INFO("Wait " << end.first << " \"" << end.second << "\", " << times << " times");
    CHECK((end.first == kUnavailable || end.first == kDeadlineExceeded));
  }
  for (const auto& [end, times] : statuses.end()) {
    INFO("Status " << end.first << " \"" << end.second << "\", " << times << " times");
    CHECK(end.first == kOk);
  }
}

}  // namespace kuasar::test
