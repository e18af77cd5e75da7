#pragma once

#include <sys/types.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <string>

#include "async/task.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// Moves bytes from one descriptor to another until the first ends. They go by splice(2), so that
/// none is ever in our memory only; where the kernel refuses that (EINVAL), at most kCopyBytes are.
/// Both descriptors must be non-blocking and of descriptions that are ours. Owned by whoever runs
/// it, lives on the io thread, must outlive run().
class Pump {
 public:
  static constexpr std::size_t kCopyBytes = 4096;

  enum class End {
    /// Every writer is gone and everything was moved (a terminal: every slave is closed).
    kEof,
    /// The other side takes nothing any more.
    kBroken,
    /// cut() was called; what was there has been moved as far as it fitted.
    kCut,
    /// The coroutine was cancelled; nothing is lost, another pump can go on.
    kCancelled,
  };

  Pump(asio::any_io_executor executor, UniqueFd in, UniqueFd out);
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  Task<End> run();
  /// Ends run() soon.
  void cut();
  /// Gives the writing end back; after run().
  UniqueFd take_out();

 private:
  ssize_t move_some();
  bool waits_for_out();

  asio::posix::stream_descriptor in_;
  asio::posix::stream_descriptor out_;
  bool copying_ = false;
  std::string pending_;
  bool cut_ = false;
};

}  // namespace kuasar::os
