#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>

namespace kuasar::os {

/// A descriptor that the child shall see under number `child_fd`. The parent keeps its own.
struct FdMapping {
  int parent_fd;
  int child_fd;
};

inline constexpr int kMaxChildFds = 16;
inline constexpr std::size_t kChildStackSize = 64 * 1024;

/// What a child needs, made before the clone: neither it nor clone_child() allocates, so that the
/// keeper can use both as well.
struct ChildPlan {
  const char* file = nullptr;
  char* const* argv = nullptr;
  char* const* envp = nullptr;
  const char* cwd = "/";
  /// /dev/null, open for reading and writing.
  int null_fd = -1;
  FdMapping fds[kMaxChildFds] = {};
  int fd_count = 0;
  /// RLIMIT_NOFILE of the child; the parent's when null.
  const rlimit* file_limit = nullptr;
  bool new_pid_namespace = false;
  bool new_mount_namespace = false;
  /// Set by the child when it cannot go on: errno and the step, as in "<step> <file>".
  int err = 0;
  const char* step = nullptr;
};

/// Starts the child on `stack` (kChildStackSize bytes, free again at the return). Returns its pid
/// and a pidfd; or -1 with plan.err and plan.step, and then there is no process.
pid_t clone_child(ChildPlan& plan, void* stack, int& pidfd);

}  // namespace kuasar::os
