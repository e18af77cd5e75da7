#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"

namespace kuasar::os {

/// How many processes of the container's memory cgroup the OOM killer has ended: oom_kill of
/// memory.oom_control (v1, since Linux 4.13) or memory.events (v2, descendants included). 0 when
/// nobody counts.
std::uint64_t oom_kills(const std::vector<std::string>& dirs);

/// Tells that the count of oom_kills() may have changed. Owned by the driver, lives on the io
/// thread; one descriptor. v1: an eventfd of memory.oom_control, which the kernel signals before
/// the kill, and also when the cgroup is removed; v2: poll of memory.events.
class OomWatch {
 public:
  /// kFailedPrecondition without a memory cgroup.
  static Result<std::shared_ptr<OomWatch>> open(asio::any_io_executor executor,
                                                const std::vector<std::string>& dirs);
  ~OomWatch();
  OomWatch(const OomWatch&) = delete;
  OomWatch& operator=(const OomWatch&) = delete;

  /// True at a change since the last call; false after close() and when cancelled.
  static Task<bool> wait(std::shared_ptr<OomWatch> watch);
  void close();

 private:
  struct Impl;
  explicit OomWatch(std::unique_ptr<Impl> impl);
  static Task<> await_count(std::shared_ptr<OomWatch> watch);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kuasar::os
