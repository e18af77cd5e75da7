#include "sandbox/goaway.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/unique_fd.h"

namespace kuasar::sandbox {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Length 8, type GOAWAY, no flags, stream 0; last stream 2^31-1, NO_ERROR, no debug data.
constexpr std::array<unsigned char, 17> kGoaway = {0,    0,    8,    7,    0, 0, 0, 0, 0,
                                                   0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0};

// 0 for a number that is nobody's.
ino_t inode_of(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? status.st_ino : 0;
}

// By the peer, or by gRPC.
bool is_closed(int fd, milliseconds timeout) {
  pollfd wanted{fd, POLLRDHUP, 0};
  return ::poll(&wanted, 1, static_cast<int>(timeout.count())) != 0;
}

milliseconds left_until(steady_clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
  return std::max(left, milliseconds(0));
}

// With all read by the peer gRPC is not in the middle of a frame that waits for room.
bool all_is_read(int fd, steady_clock::time_point deadline) {
  while (true) {
    int unread = 0;
    // SIOCOUTQ by its other name (tcp(7)); of a unix socket too (net/unix/af_unix.c).
    if (::ioctl(fd, TIOCOUTQ, &unread) != 0) return false;
    if (unread == 0) return true;
    if (steady_clock::now() > deadline || is_closed(fd, milliseconds(0))) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
}

}  // namespace

void GrpcConnections::add(int fd) {
  std::erase_if(sockets_, [](const Socket& socket) { return inode_of(socket.fd) != socket.inode; });
  sockets_.push_back({fd, inode_of(fd)});
}

void GrpcConnections::send_away(milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  std::vector<UniqueFd> open;
  for (const Socket& socket : std::exchange(sockets_, {})) {
    // The duplicate is looked at: gRPC may close its own at any moment.
    UniqueFd copy(::fcntl(socket.fd, F_DUPFD_CLOEXEC, 0));
    if (!copy || inode_of(copy.get()) != socket.inode) continue;
    if (all_is_read(copy.get(), deadline)) {
      ::send(copy.get(), kGoaway.data(), kGoaway.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    open.push_back(std::move(copy));
  }
  const auto closed = std::count_if(open.begin(), open.end(), [&](const UniqueFd& socket) {
    return is_closed(socket.get(), left_until(deadline));
  });
  log::debug({}, "{} of {} Controller connections closed by their peers", closed, open.size());
}

}  // namespace kuasar::sandbox
