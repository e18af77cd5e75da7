#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace kuasar::ttrpc {

/// Keeps the requests of one server connection that are consumed but not answered, so that a
/// later process can answer them. The connection reads with MSG_PEEK, appends the frame here,
/// only then consumes it, and strikes the entry once the whole answer has been handed to the
/// kernel. Owned by the connection; used on the io thread; no call may take longer than a write
/// to a tmpfs.
class Journal {
 public:
  enum class Direction { kInput, kOutput };

  /// A request that an earlier process consumed and did not answer.
  struct Entry {
    std::string frame;
    /// Time since it was appended.
    std::chrono::nanoseconds age{0};
    /// mark_applied() was called for it.
    bool applied = false;
    /// It was under way, for the second time, when a process crashed: it may be the cause.
    bool suspect = false;
  };

  virtual ~Journal() = default;

  /// Notes a whole request frame (header and data) whose bytes are still in the socket, or have
  /// just been read plainly (set_torn). An error closes the connection before the request runs.
  virtual Result<> append(std::uint32_t stream, std::string_view frame) = 0;
  /// The stream was answered. One that was never appended (its frame was over the limit) is no
  /// error.
  virtual void strike(std::uint32_t stream) = 0;

  /// The stream's handler has done what must not be done twice.
  virtual void mark_applied(std::uint32_t) {}

  /// While torn, a crash leaves the byte stream of this direction inside a frame, so a later
  /// process must close the connection: a frame that does not fit a peek is being read, or an
  /// answer over one send() is being written.
  virtual void set_torn(Direction, bool) {}

  /// What an earlier process left, in arrival order; run again with CallContext::redelivered.
  /// Asked once, when the connection is adopted.
  virtual std::vector<Entry> unanswered() { return {}; }
  /// The highest stream id that an earlier process appended: a request at or below it that is
  /// still in the socket was journalled but not consumed, and is skipped. 0 if there is none.
  virtual std::uint32_t last_stream() const { return 0; }

  /// The connection has ended for good: nobody will ask again. Not called when only this process
  /// lets go of it.
  virtual void discard() {}
};

}  // namespace kuasar::ttrpc
