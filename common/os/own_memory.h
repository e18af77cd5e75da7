#pragma once

#include <cstddef>

#include "base/error.h"

namespace kuasar::os {

/// Takes the pages of files out of this process's memory that it cannot change: code and constants
/// of the program and its libraries. They stay in the page cache, and what is used again comes back
/// by a minor fault, 16 pages at a time (MADV_DONTNEED, madvise(2)). A mapping of which a page has
/// been changed, by a debugger's or an uprobe's breakpoint, is left alone.
Result<> release_file_pages();

/// From now on a crash leaves no core file of this process and only root may trace it
/// (PR_SET_DUMPABLE, prctl(2)): its memory holds environments and secrets of pods. A program that
/// it executes is not affected.
void forbid_core_dumps();

/// How much this process has in memory, from /proc/self/statm (proc(5)).
struct ResidentBytes {
  std::size_t files = 0;
  std::size_t anonymous = 0;
};
ResidentBytes resident_bytes();

}  // namespace kuasar::os
