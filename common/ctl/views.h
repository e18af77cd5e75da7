#pragma once

#include <boost/json/value.hpp>
#include <chrono>
#include <string>
#include <vector>

#include "ctl/daemons.h"

// What the daemons answered, for people and as JSON. Pure. The names of JSON members are promised
// in docs/CTL.md.

namespace kuasar::ctl {

using Now = std::chrono::system_clock::time_point;

std::string pods_text(const std::vector<PodList>& lists, Now now);
boost::json::value pods_json(const std::vector<PodList>& lists);
/// Whole ids, one per line.
std::string pod_ids(const std::vector<PodList>& lists);

boost::json::value pod_json(const std::string& daemon, const api::Pod& pod);

/// What is wrong with it, a sentence each; none when all is well.
std::vector<std::string> findings_of(const DaemonHealth& daemon);
std::string health_text(const std::vector<DaemonHealth>& daemons, Now now);
boost::json::value health_json(const std::vector<DaemonHealth>& daemons);

/// What a container's cgroups count.
struct Usage {
  std::string daemon;
  std::string pod;
  std::string pod_name;
  std::string id;
  std::string name;
  double cpu_seconds = 0;
  /// Without the page cache that the kernel would give up first, as the kubelet counts it.
  unsigned long long memory = 0;
  unsigned long long pids = 0;
};
/// Reads them, v1 and v2; what a hierarchy does not count is 0.
Usage read_usage(const std::vector<std::string>& cgroups);
/// Of every container that runs.
std::vector<Usage> usage_of(const std::vector<PodList>& lists);
std::string usage_text(const std::vector<Usage>& all);
boost::json::value usage_json(const std::vector<Usage>& all);

}  // namespace kuasar::ctl
