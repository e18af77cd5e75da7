#pragma once

#include <sys/types.h>

#include "os/process_usage.h"

namespace kuasar::test {

/// What os/process_usage.h tells of a process that must be there; throws std::runtime_error.
os::MemoryUse memory(pid_t pid);
double cpu_seconds(pid_t pid);

/// How many descriptors it has open.
int open_descriptors(pid_t pid);

}  // namespace kuasar::test
