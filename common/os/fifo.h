#pragma once

#include <cstddef>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

// Opening one of containerd's FIFOs never blocks; anything else at that path is refused in words.
// Every end is an open file description of its own: O_NONBLOCK belongs to the description, and a
// workload whose output is non-blocking loses it at 64 KiB.

/// The ends of an output FIFO.
struct OutputFifo {
  /// O_RDONLY | O_NONBLOCK, kept until the process is deleted: no writer ever sees SIGPIPE,
  /// nothing unread is lost while containerd restarts.
  UniqueFd reader;
  /// O_WRONLY | O_NONBLOCK, ours: as long as it is there, containerd's reader sees no end.
  UniqueFd writer;
  /// O_WRONLY, blocking, for the workload alone.
  UniqueFd workload;
};
Result<OutputFifo> open_output_fifo(const std::string& path);

/// The ends of an input FIFO.
struct InputFifo {
  /// O_WRONLY | O_NONBLOCK, ours: as long as it is there, the workload sees no end.
  UniqueFd writer;
  /// O_RDONLY, blocking, for the workload; O_NONBLOCK when `ours`.
  UniqueFd reader;
};
Result<InputFifo> open_input_fifo(const std::string& path, bool ours);

/// A pipe for a process that does not get a FIFO itself: our end is non-blocking.
struct OutputPipe {
  UniqueFd reader;
  UniqueFd workload;
};
Result<OutputPipe> make_output_pipe();

/// Bytes in a FIFO or pipe that nobody has read (ioctl FIONREAD); 0 when that cannot be told.
std::size_t unread_bytes(int fd);

/// Whether anybody has the other end of a FIFO or pipe open for reading, seen from its writing end.
bool has_reader(int writer);

/// A descriptor's own duplicate, closed on exec.
Result<UniqueFd> duplicate(int fd);

}  // namespace kuasar::os
