#pragma once

#include <sys/types.h>

#include "base/error.h"

namespace kuasar::os {

/// The lowest oom_score_adj that a process which we start may be given: -1000, or our own where
/// the machine forbids to lower it (no CAP_SYS_RESOURCE; containers, some virtual machines). Found
/// by trying it on this process for a moment, proc_pid_oom_score_adj(5).
Result<int> lowest_oom_score_adj();

/// The oom_score_adj of a process; an error when there is none (any more).
Result<int> oom_score_adj_of(pid_t pid);

}  // namespace kuasar::os
