#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::os {

/// One mount as containerd and fstab(5) write it.
struct MountSpec {
  std::string type;
  std::string source;
  std::vector<std::string> options;
};

/// A MountSpec in the words of mount(2).
struct MountPlan {
  std::string type;
  std::string source;
  unsigned long flags = 0;
  /// MS_PRIVATE, MS_SLAVE... to be applied by a call of its own; 0 for none.
  unsigned long propagation = 0;
  /// A bind mount takes its other flags only by a remount.
  bool bind_remount = false;
  std::string data;
  /// containerd's pseudo-options "uidmap=" and "gidmap=": the mount's files belong to a user
  /// namespace with these maps. Both or none.
  std::string uid_map;
  std::string gid_map;
};

/// A user namespace to map the owners of files into.
struct IdMap {
  /// Its pin; empty: there is none.
  std::string user_namespace;
  /// "<first id inside>:<first id outside>:<count>", as containerd writes a mapping.
  std::string uids;
  std::string gids;
  bool operator==(const IdMap&) const = default;
};

/// Translates options; pure. containerd's own "X-containerd.*" hints are dropped, "loop" is refused
/// by name.
Result<MountPlan> plan_mount(const MountSpec& spec);

/// Option data longer than one page (mount(2) takes 4 KiB): for an overlay the common parent of
/// all lower directories is taken off, to be mounted with that directory as the working
/// directory, as containerd does. Pure; returns {directory, data}.
struct ShortenedOverlay {
  std::string directory;
  std::string data;
};
Result<ShortenedOverlay> shorten_overlay(const std::string& data);

/// Mounts all on `target`, one over the other. A failure leaves none of them. Mounts that shall be
/// mapped need the user namespace and a directory for mount_idmapped() (os/idmap.h). Blocking.
Result<> mount_all(const std::vector<MountSpec>& mounts, const std::string& target,
                   const IdMap& map = {}, const std::string& scratch = {});

/// One mount but for its id maps.
Result<> mount_planned(const MountPlan& plan, const std::string& target);
/// What needs a call of its own once it is mounted: the flags of a bind mount, propagation. A
/// failure unmounts it.
Result<> finish_mount(const MountPlan& plan, const std::string& target);

/// mount(2) as it is.
Result<> mount(const std::string& source, const std::string& target, const std::string& type,
               unsigned long flags, const std::string& data);
/// A private tmpfs (nodev, nosuid) of at most `size` bytes (0: the kernel's default); `more` is
/// appended to its options.
Result<> mount_tmpfs(const std::string& target, const std::string& name, unsigned mode,
                     unsigned long long size, bool noexec, const std::string& more = {});
/// Bind mount of one file or directory; not recursive.
Result<> bind_mount(const std::string& source, const std::string& target);
Result<> make_mount_private(const std::string& target);
/// Lazily unmounts everything that is stacked on exactly `target`. Not mounted: success.
Result<> unmount_all(const std::string& target);
/// True when something is mounted on exactly `path` (statx, STATX_ATTR_MOUNT_ROOT).
bool is_mountpoint(const std::string& path);
/// True when `path` lies on a tmpfs.
bool is_on_tmpfs(const std::string& path);

}  // namespace kuasar::os
