#pragma once

#include <string_view>

#include "base/error.h"
#include "os/cgroup_limits.h"

namespace kuasar::oci {

/// Reads LinuxResources of the OCI runtime specification (JSON), the argument of Task.Update. 0 and
/// null mean "as it is", as they do to runc. What no runtime can change on a running container
/// (devices, network, rdma) is passed over, because containerd sends the whole of the spec again;
/// a limit that we do not know how to set is refused by its name, kUnimplemented.
Result<os::CgroupLimits> parse_resources(std::string_view json);

}  // namespace kuasar::oci
