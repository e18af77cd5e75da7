#pragma once

#include <chrono>

#include "async/task.h"

namespace kuasar::os {

/// True when something can be read from the descriptor, its end included; false when the coroutine
/// was cancelled before. Waits on a duplicate: the caller may close its own meanwhile.
Task<bool> readable(int fd);

/// The same, and false when `timeout` is over before; the descriptor stays open meanwhile.
Task<bool> readable_within(int fd, std::chrono::nanoseconds timeout);

}  // namespace kuasar::os
