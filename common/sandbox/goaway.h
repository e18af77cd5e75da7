#pragma once

#include <sys/types.h>

#include <chrono>
#include <vector>

namespace kuasar::sandbox {

/// The connections that gRPC serves, on descriptors that it owns, to end them as HTTP/2 means it:
/// GOAWAY with the highest stream id (RFC 9113, 6.8) asks the peer to make no further call here
/// while those that it has made are answered. grpc::Server::Shutdown() sends that too, but gRPC
/// (1.51) answers calls that come between it and the peer's reading of it with CANCELLED, which
/// containerd takes for the end of a pod (T16). So peers are sent away first.
class GrpcConnections {
 public:
  /// Remembers a connected stream socket that gRPC is given, and forgets those that it has closed.
  void add(int fd);

  /// Sends GOAWAY on every connection, then waits for the peers to close them; blocks for up to
  /// `timeout`. A peer that reads nothing gets none.
  void send_away(std::chrono::milliseconds timeout);

 private:
  // gRPC closes a descriptor when it likes: the number is the socket's while the inode is.
  struct Socket {
    int fd;
    ino_t inode;
  };

  std::vector<Socket> sockets_;
};

}  // namespace kuasar::sandbox
