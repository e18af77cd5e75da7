#pragma once

#include "async/task.h"

namespace kuasar::daemon {

/// Gives memory back to the kernel some seconds after the start, and after each burst of calls:
/// free pages of the heap (malloc_trim(3); free(3) alone gives back only the heap's top), and pages
/// of the program and its libraries. Runs until it is cancelled.
Task<> give_memory_back();

}  // namespace kuasar::daemon
