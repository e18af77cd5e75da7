#include "sandbox/goaway.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <thread>

#include "base/log.h"

namespace kuasar::sandbox {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Length 8, type GOAWAY, no flags, stream 0; last stream 2^31-1, NO_ERROR, no debug data.
constexpr std::array<unsigned char, 17> kGoaway = {0,    0,    8,    7,    0, 0, 0, 0, 0,
                                                   0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0};

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
    if (::ioctl(fd, SIOCOUTQ, &unread) != 0) return false;
    if (unread == 0) return true;
    if (steady_clock::now() > deadline || is_closed(fd, milliseconds(0))) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
}

}  // namespace

void GrpcConnections::add(int fd) {
  std::erase_if(sockets_,
                [](const UniqueFd& socket) { return is_closed(socket.get(), milliseconds(0)); });
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (copy) sockets_.push_back(std::move(copy));
}

void GrpcConnections::send_away(milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (const UniqueFd& socket : sockets_) {
    if (all_is_read(socket.get(), deadline)) {
      ::send(socket.get(), kGoaway.data(), kGoaway.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
  }
  const auto closed = std::count_if(sockets_.begin(), sockets_.end(), [&](const UniqueFd& socket) {
    return is_closed(socket.get(), left_until(deadline));
  });
  log::debug({}, "{} of {} Controller connections closed by their peers", closed, sockets_.size());
  sockets_.clear();
}

}  // namespace kuasar::sandbox
