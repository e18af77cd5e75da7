#include "keeper/packet.h"

#include <sys/socket.h>

#include <cstring>

namespace kuasar::keeper {
namespace {

constexpr std::size_t kControlSize = CMSG_SPACE(sizeof(int) * wire::kMaxFds);

}  // namespace

Packet receive_packet(int socket, char* room, std::size_t room_size) {
  iovec part{room, room_size};
  alignas(cmsghdr) char control[kControlSize];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  Packet packet;
  packet.size = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (packet.size < 0) return packet;
  packet.fds_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  const cmsghdr* c = CMSG_FIRSTHDR(&message);
  if (c != nullptr && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
    packet.fd_count = static_cast<int>((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(packet.fds, CMSG_DATA(c), static_cast<std::size_t>(packet.fd_count) * sizeof(int));
  }
  return packet;
}

bool send_packet(int socket, const char* bytes, std::size_t size, const int* fds,
                 std::size_t fd_count) {
  iovec part{const_cast<char*>(bytes), size};
  alignas(cmsghdr) char control[kControlSize] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd_count > 0) {
    const std::size_t fds_size = fd_count * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds_size);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds_size);
    std::memcpy(CMSG_DATA(c), fds, fds_size);
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

}  // namespace kuasar::keeper
