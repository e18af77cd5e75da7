#pragma once

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// Both ends of one of containerd's output FIFOs.
struct OutputFifo {
  /// O_RDONLY | O_NONBLOCK, kept by us until the container is deleted: no writer ever sees
  /// SIGPIPE, nothing unread is lost while containerd restarts.
  UniqueFd reader;
  /// O_WRONLY, blocking, an open file description of its own: this is what the workload gets.
  UniqueFd writer;
};

/// Opens an existing FIFO; never blocks. Anything else at that path is refused in words.
Result<OutputFifo> open_output_fifo(const std::string& path);

}  // namespace kuasar::os
