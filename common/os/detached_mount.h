#pragma once

#include "base/error.h"
#include "base/unique_fd.h"
#include "os/mount.h"

namespace kuasar::os {

// Mounts that are nowhere yet, held by a descriptor: move_mount(2) puts them into a mount
// namespace, perhaps another one than that of this process. They go with the last descriptor.
// Linux 5.12. Blocking.

/// A copy of the mount at plan.source (with all below it for rbind), or a new tmpfs, with the flags
/// and the propagation of the plan; private when that says none. `recursive_readonly` makes what
/// lies below it read-only, too. Whoever gets such mounts has no rules for devices in his cgroup
/// and an engine to protect in his own process. So device nodes in all of it do not open (nodev),
/// whatever the plan says, and a procfs, or a tree that by our mountinfo has one in it, is refused.
/// kUnimplemented for that, for other types, and, by name, for options that it would have to
/// ignore.
/// `user_namespace`: the owners of its files, but not of what lies below it, are mapped into that
/// (an idmapped mount: mount_setattr(2), binds only); -1: they are not.
Result<UniqueFd> make_detached_mount(const MountPlan& plan, bool recursive_readonly = false,
                                     int user_namespace = -1);

/// A tmpfs with the device nodes that any program may use (null, zero, full, random, urandom), for
/// /dev: the one mount from here whose nodes open.
Result<UniqueFd> make_device_dir();

}  // namespace kuasar::os
