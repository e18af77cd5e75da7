#pragma once

#include "async/task.h"

namespace kuasar::daemon {

/// Gives free pages of the heap back to the kernel some seconds after a burst of calls has left
/// them (malloc_trim(3); free(3) alone gives back only the heap's top). Runs until it is cancelled.
Task<> trim_heap();

}  // namespace kuasar::daemon
