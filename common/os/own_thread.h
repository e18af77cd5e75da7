#pragma once

#include <functional>

#include "base/error.h"

namespace kuasar::os {

/// Runs `work` in a thread that ends with it, for what changes a thread for good (unshare(2),
/// setns(2)), and waits. kResourceExhausted when no thread can be started (pthread_create(3): the
/// limit of PIDs is reached), kInternal when `work` throws. Blocking.
Result<> run_in_own_thread(const std::function<Result<>()>& work);

}  // namespace kuasar::os
