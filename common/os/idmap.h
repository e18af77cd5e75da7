#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "os/mount.h"

namespace kuasar::os {

/// Makes the mount of `plan` on `target` with the owners of its files mapped into `map`'s user
/// namespace (mount_setattr(2), MOUNT_ATTR_IDMAP; Linux 5.19 for an overlay). An overlay takes no
/// such attribute itself: its lower directories are cloned and mapped, one mount each below
/// `scratch` (made and removed here), and the overlay is mounted on those. The upper directory is
/// not mapped: containerd has given it to the mapped root. kUnimplemented for other types than bind
/// and overlay. A failure leaves no mount. Blocking.
Result<> mount_idmapped(const MountPlan& plan, const std::string& target, const IdMap& map,
                        const std::string& scratch);

/// Takes away what a mount_idmapped() left in `scratch` when its daemon died. Not there: success.
Result<> remove_idmap_scratch(const std::string& scratch);

/// Overlay options with their lower directories replaced, in order, by `dirs`. Pure.
std::string with_lower_dirs(const std::string& data, const std::vector<std::string>& dirs);
/// The lower directories of overlay options, top first. Pure.
std::vector<std::string> lower_dirs(const std::string& data);

}  // namespace kuasar::os
