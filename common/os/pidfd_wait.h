#pragma once

#include <chrono>

#include "async/task.h"

namespace kuasar::os {

/// True when the process of the pidfd has ended (it may be a zombie), false when the coroutine was
/// cancelled before. Waits on a duplicate: the caller may close its own meanwhile.
Task<bool> pidfd_wait(int pidfd);

/// The same, and false when `timeout` is over before; the pidfd stays open meanwhile.
Task<bool> pidfd_wait_for(int pidfd, std::chrono::nanoseconds timeout);

}  // namespace kuasar::os
