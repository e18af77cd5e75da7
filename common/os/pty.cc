#include "os/pty.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "os/fifo.h"

namespace kuasar::os {

namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Code::kInvalidArgument, "the path of the console socket {} is over {} bytes", path,
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size());
  return address;
}

}  // namespace

Result<UniqueFd> listen_console(const std::string& path) {
  TRY(const sockaddr_un address, address_of(path));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("socket", path);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno("bind", path);
  }
  if (::chmod(path.c_str(), 0600) != 0) return fail_errno("chmod", path);
  if (::listen(fd.get(), 1) != 0) return fail_errno("listen", path);
  return fd;
}

Result<UniqueFd> accept_console(int socket) {
  UniqueFd fd(::accept4(socket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd) return fd;
  if (errno == EINVAL) return duplicate(socket);
  if (errno == EAGAIN) return fail(Code::kNotFound, "the OCI runtime has sent no terminal");
  return fail_errno("accept", "console socket");
}

Result<UniqueFd> receive_console(int connection) {
  // The message is the terminal's name, which nobody needs.
  char name[256];
  iovec bytes{name, sizeof name};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t size = ::recvmsg(connection, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) return fail_errno("receive", "terminal of the OCI runtime");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
    return fail(Code::kInternal, "the OCI runtime's message holds no terminal");
  }
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  UniqueFd master(fd);
  unsigned int number = 0;
  if (::ioctl(master.get(), TIOCGPTN, &number) != 0) {
    return fail_errno("TIOCGPTN", "what the OCI runtime sent is no terminal");
  }
  const int flags = ::fcntl(master.get(), F_GETFL);
  if (flags < 0 || ::fcntl(master.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return fail_errno("fcntl", "terminal");
  }
  return master;
}

Result<Terminal> make_terminal() {
  Terminal terminal;
  terminal.master.reset(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!terminal.master) return fail_errno("open", "/dev/ptmx");
  int unlock = 0;
  if (::ioctl(terminal.master.get(), TIOCSPTLCK, &unlock) != 0) return fail_errno("TIOCSPTLCK");
  // By the master, whatever is mounted on /dev/pts (Linux 4.13).
  terminal.slave.reset(::ioctl(terminal.master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!terminal.slave) return fail_errno("TIOCGPTPEER");
  return terminal;
}

Result<> send_console(const std::string& path, int master) {
  TRY(const sockaddr_un address, address_of(path));
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return fail_errno("socket", path);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno("connect", path);
  }
  char name[] = "pty";
  iovec bytes{name, sizeof name - 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &master, sizeof master);
  if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) < 0) return fail_errno("send", path);
  return {};
}

Result<> set_window_size(int master, std::uint16_t width, std::uint16_t height) {
  winsize size{};
  size.ws_col = width;
  size.ws_row = height;
  if (::ioctl(master, TIOCSWINSZ, &size) != 0) return fail_errno("TIOCSWINSZ", "terminal");
  return {};
}

}  // namespace kuasar::os
