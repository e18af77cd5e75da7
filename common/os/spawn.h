#pragma once

#include "os/spawner.h"

namespace kuasar::os {

/// A child right after the fork: its pid and a pidfd for it.
struct Spawned {
  pid_t pid = -1;
  UniqueFd pidfd;
};

/// Starts a child by clone(2) with CLONE_VM | CLONE_VFORK and execve(2): safe in a threaded
/// process, because the child runs nothing but system calls on a stack of its own and this thread
/// sleeps until the exec. Blocks for that long (well under a millisecond). The child gets default
/// signal dispositions, an empty signal mask, its own session, umask 022 and only the listed fds.
/// A program that cannot be executed is an error that names it, and leaves no process behind.
Result<Spawned> spawn_process(const ProcessSpec& spec);

/// Raises this process's soft limit of open files to its hard one (a pod takes several); children
/// get the limit that this process was started with.
Result<> raise_file_limit();

/// RLIMIT_NOFILE as this process was started with, when raise_file_limit() has raised it; else
/// null.
const rlimit* started_file_limit();

/// The file that `program` names: itself when it has a '/', else the first executable of that
/// name in PATH. kNotFound in words otherwise.
Result<std::string> find_program(const std::string& program);

}  // namespace kuasar::os
