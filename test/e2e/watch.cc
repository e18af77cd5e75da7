#include "e2e/watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "support/wait.h"

namespace kuasar::test {

Watch::Watch(const std::filesystem::path& socket, std::size_t pods, std::size_t containers)
    : client_(socket), pods_(pods), containers_(containers) {
  thread_ = std::thread([this] { watch(); });
}

void Watch::stop() {
  stopping_ = true;
  if (thread_.joinable()) thread_.join();
}

bool Watch::ask_more(int questions) const {
  const int goal = asked_ + questions;
  return wait_until([&] { return asked_ >= goal; }, std::chrono::seconds(30));
}

std::string Watch::complaint() {
  const std::lock_guard lock(mutex_);
  return complaint_;
}

void Watch::watch() {
  while (!stopping_) {
    const std::string found = look();
    const std::lock_guard lock(mutex_);
    ++asked_;
    if (complaint_.empty() && !found.empty()) {
      complaint_ = fmt::format("{} at question {}", found, +asked_);
    }
  }
}

std::string Watch::look() {
  const auto pods = client_.list_pods();
  if (!pods) return pods.error().message;
  const auto ready =
      static_cast<std::size_t>(std::count_if(pods->begin(), pods->end(), [](const auto& pod) {
        return pod.state() == cri::SANDBOX_READY;
      }));
  if (ready != pods_) return fmt::format("{} of {} pods are READY", ready, pods_);
  const auto containers = client_.list_containers();
  if (!containers) return containers.error().message;
  const auto running = static_cast<std::size_t>(
      std::count_if(containers->begin(), containers->end(),
                    [](const auto& one) { return one.state() == cri::CONTAINER_RUNNING; }));
  const std::size_t expected = containers_;
  if (running < expected) return fmt::format("{} of {} containers RUNNING", running, expected);
  return "";
}

}  // namespace kuasar::test
