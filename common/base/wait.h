#pragma once

#include <chrono>
#include <thread>
#include <utility>

namespace kuasar {

/// Polls `condition` every few milliseconds until it holds or the deadline is over; returns whether
/// it held. The condition is asked once more after the deadline, so that a slow machine does not
/// turn a true condition into a failure.
template <typename Condition>
bool wait_until(Condition condition, std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (std::chrono::steady_clock::now() < end) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return condition();
}

}  // namespace kuasar
