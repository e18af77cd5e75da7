#pragma once

#include <google/protobuf/any.pb.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace io::containerd::cgroups::v1 {
class Metrics;
}
namespace io::containerd::cgroups::v2 {
class Metrics;
}

namespace kuasar::os {
struct CgroupControllers;
}

namespace kuasar::task {

/// What the kernel counts for a container or a pod, as the message that containerd's stats decoder
/// knows: io.containerd.cgroups.v2.Metrics when the memory controller is on v2 (and where there is
/// none, the CPU's), else v1.Metrics. The bare name is its type URL (T4). On a hybrid machine a
/// controller of the other version fills the fields that both messages have. kNotFound when none of
/// the directories is there any more. Reads a dozen small files.
Result<google::protobuf::Any> cgroup_stats(const std::vector<std::string>& dirs);

void fill_metrics(const os::CgroupControllers& controllers,
                  ::io::containerd::cgroups::v1::Metrics& metrics);
void fill_metrics(const os::CgroupControllers& controllers,
                  ::io::containerd::cgroups::v2::Metrics& metrics);

}  // namespace kuasar::task
