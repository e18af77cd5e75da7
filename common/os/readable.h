#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "async/task.h"

namespace kuasar::os {

/// True when something can be read from the descriptor, its end included; false when the coroutine
/// was cancelled before. Waits on a duplicate: the caller may close its own meanwhile.
Task<bool> readable(int fd);

/// The same, and false when `timeout` is over before; the descriptor stays open meanwhile.
Task<bool> readable_within(int fd, std::chrono::nanoseconds timeout);

/// Calls `then` once, by the executor, when something can be read from a descriptor, its end
/// included, or when it cannot be watched; never after the destruction. It keeps a duplicate of the
/// descriptor until then.
class WhenReadable {
 public:
  WhenReadable(const asio::any_io_executor& executor, int fd, std::function<void()> then);
  ~WhenReadable();
  WhenReadable(const WhenReadable&) = delete;
  WhenReadable& operator=(const WhenReadable&) = delete;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace kuasar::os
