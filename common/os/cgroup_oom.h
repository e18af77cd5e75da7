#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "os/cgroup_files.h"

namespace kuasar::os {

/// How many processes of the container's memory cgroup the OOM killer has ended: oom_kill of
/// memory.oom_control (v1, since Linux 4.13) or memory.events (v2, descendants included). Absent
/// when nobody counts, which includes that the cgroup is gone.
std::optional<std::uint64_t> oom_kills(const std::vector<std::string>& dirs);

/// The same for containers whose cgroup may be gone before anybody has read it: systemd removes a
/// scope as soon as its last process has ended. On v2 the pod's cgroup, which outlives it, has
/// counted its descendants' kills too (cgroup-v2.rst, memory.events); those that no container of
/// the pod accounts for are the ones of the container that has gone. v1 counts no descendants.
class OomLedger {
 public:
  /// Never less than before for the same container. Its first call sets what is compared with: it
  /// comes while the cgroup is there.
  std::uint64_t kills(const std::string& container, const std::vector<std::string>& dirs);
  void forget(const std::string& container);

 private:
  struct Pod {
    ControllerDir memory;
    std::uint64_t accounted = 0;
  };
  struct Container {
    ControllerDir memory;
    /// Absent on v1.
    std::shared_ptr<Pod> pod;
    std::uint64_t kills = 0;
  };

  std::uint64_t first_look(const std::string& container, const std::vector<std::string>& dirs);
  static void add(Container& container, std::uint64_t kills);
  /// Looks at the container's own count; false when its cgroup is gone.
  static bool look(Container& container);

  std::map<std::string, Container> containers_;
};

/// Tells when the count of oom_kills() may have changed, until it is destroyed. Owned by the
/// driver, lives on the io thread; one descriptor. v1: an eventfd of memory.oom_control, which the
/// kernel signals before the kill, and also when the cgroup is removed; v2: poll of memory.events.
class OomWatch {
 public:
  /// kFailedPrecondition without a memory cgroup.
  static Result<std::unique_ptr<OomWatch>> open(const asio::any_io_executor& executor,
                                                const std::vector<std::string>& dirs,
                                                std::function<void()> changed);
  ~OomWatch();
  OomWatch(const OomWatch&) = delete;
  OomWatch& operator=(const OomWatch&) = delete;

 private:
  struct Impl;
  explicit OomWatch(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace kuasar::os
