#pragma once

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// Counts the forks and execs of the whole machine, by the kernel's process events connector
/// (cn_proc, CONFIG_PROC_EVENTS). Owns a netlink socket; may be used on any one thread.
class ProcessEvents {
 public:
  struct Counts {
    /// New processes; threads are not counted.
    unsigned forks = 0;
    unsigned execs = 0;
  };

  /// Needs CAP_NET_ADMIN, and the machine's own network and PID namespace: the kernel tells nobody
  /// else. kUnimplemented, kPermissionDenied.
  static Result<ProcessEvents> open();

  /// What has happened since open() or the last take(). kDataLoss when more happened than the
  /// socket's buffer holds.
  Result<Counts> take();

 private:
  explicit ProcessEvents(UniqueFd socket) : socket_(std::move(socket)) {}

  UniqueFd socket_;
};

}  // namespace kuasar::os
