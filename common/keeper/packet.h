#pragma once

#include <sys/types.h>

#include <cstddef>

#include "keeper/wire.h"

namespace kuasar::keeper {

/// A packet that was received, and what came beside it: close-on-exec, the caller's to close.
struct Packet {
  /// As recvmsg(2), with its errno.
  ssize_t size = -1;
  int fds[wire::kMaxFds];
  int fd_count = 0;
  /// Some descriptors did not arrive: too many, or the limit of open files is reached.
  bool fds_lost = false;
};

/// Both ends speak with these; neither blocks, raises SIGPIPE or allocates.
Packet receive_packet(int socket, char* room, std::size_t room_size);
/// False with the errno of sendmsg(2).
bool send_packet(int socket, const char* bytes, std::size_t size, const int* fds,
                 std::size_t fd_count);

}  // namespace kuasar::keeper
