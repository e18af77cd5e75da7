#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

// An OCI runtime makes the terminal of a process inside the container and sends its master end
// over a socket (--console-socket). It waits for no answer, so the message may be fetched after the
// runtime has ended.

/// Listens at `path` (at most 107 bytes, a left-over one is removed), mode 0600, non-blocking.
Result<UniqueFd> listen_console(const std::string& path);

/// The connection that waits at a console socket; kNotFound when there is none. Given a connection
/// instead of a listener, a duplicate of it: an earlier daemon may have come that far.
Result<UniqueFd> accept_console(int socket);

/// The terminal's master end, non-blocking. The message stays in the connection (MSG_PEEK), so that
/// the caller can store the descriptor before it closes the connection.
Result<UniqueFd> receive_console(int connection);

/// Both ends of a new terminal of this host. The master is to be sent to a console socket by
/// whoever takes an OCI runtime's part.
struct Terminal {
  UniqueFd master;
  UniqueFd slave;
};
Result<Terminal> make_terminal();
/// Sends the master as an OCI runtime does.
Result<> send_console(const std::string& path, int master);

/// ioctl TIOCSWINSZ.
Result<> set_window_size(int master, std::uint16_t width, std::uint16_t height);

}  // namespace kuasar::os
