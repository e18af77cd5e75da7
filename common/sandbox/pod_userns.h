#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"

namespace runtime::v1 {
class PodSandboxConfig;
}

namespace kuasar::sandbox {

/// The pod's root in the host's ids; 0 and 0 without a user namespace.
struct PodRoot {
  uid_t uid = 0;
  gid_t gid = 0;
  bool operator==(const PodRoot&) const = default;
};

/// Ids 0 to `count` - 1 of a pod are the host's `first`, `first` + 1...
struct IdRange {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  bool operator==(const IdRange&) const = default;

  /// As containerd writes a mapping in mount options: "0:<first>:<count>".
  std::string option() const;
  /// As /proc/PID/uid_map takes it: "0 <first> <count>\n".
  std::string line() const;
};

/// The user namespace that a pod asks for.
struct PodUserNamespace {
  IdRange uids;
  IdRange gids;
  bool operator==(const PodUserNamespace&) const = default;

  PodRoot root() const { return {uids.first, gids.first}; }
};

/// Reads namespace_options.userns_options: nothing for a pod in the host's. Pure; nobody above has
/// checked it. kInvalidArgument with the field's name: a mode other than POD and NODE, mappings
/// with NODE, POD with other than one mapping of users and one of groups, a mapping that does not
/// begin with id 0 of the pod, that is empty or that leaves the range of ids.
Result<std::optional<PodUserNamespace>> user_namespace(const runtime::v1::PodSandboxConfig& config);

}  // namespace kuasar::sandbox
