#include "os/process_events.h"

#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace kuasar::os {
namespace {

// Some 100,000 events.
constexpr int kBuffer = 16 << 20;
constexpr int kAckMilliseconds = 1000;
// PROC_EVENT_FORK and PROC_EVENT_EXEC, which moved out of struct proc_event with Linux 6.6.
constexpr unsigned kFork = 1;
constexpr unsigned kExec = 2;

// One message of the connector: netlink's header, the connector's, and what is in it.
constexpr std::size_t kHeaders = NLMSG_HDRLEN + sizeof(cn_msg);
template <typename Payload>
using Message = std::array<char, kHeaders + sizeof(Payload)>;

// The connector acknowledges nothing when it has nothing to tell: outside of the machine's own
// namespaces a listener hears silence.
bool in_first_pid_namespace() {
  std::array<char, 64> name{};
  const ssize_t size = ::readlink("/proc/self/ns/pid", name.data(), name.size() - 1);
  // PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h.
  return size > 0 && std::strcmp(name.data(), "pid:[4026531836]") == 0;
}

}  // namespace

Result<ProcessEvents> ProcessEvents::open() {
  if (!in_first_pid_namespace()) {
    return fail(Code::kUnimplemented,
                "process events are told in the machine's own PID namespace only");
  }
  UniqueFd fd(::socket(PF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_CONNECTOR));
  if (!fd) return fail_errno("socket", "NETLINK_CONNECTOR");
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kBuffer, sizeof kBuffer) != 0) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kBuffer, sizeof kBuffer);
  }
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = CN_IDX_PROC;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno("bind", "the process events connector");
  }
  Message<proc_cn_mcast_op> message{};
  nlmsghdr netlink{};
  netlink.nlmsg_len = sizeof message;
  netlink.nlmsg_type = NLMSG_DONE;
  cn_msg connector{};
  connector.id = {CN_IDX_PROC, CN_VAL_PROC};
  connector.len = sizeof(proc_cn_mcast_op);
  const proc_cn_mcast_op listen = PROC_CN_MCAST_LISTEN;
  std::memcpy(message.data(), &netlink, sizeof netlink);
  std::memcpy(message.data() + NLMSG_HDRLEN, &connector, sizeof connector);
  std::memcpy(message.data() + kHeaders, &listen, sizeof listen);
  if (::send(fd.get(), message.data(), message.size(), 0) != static_cast<ssize_t>(message.size())) {
    return fail_errno("listen", "the process events connector");
  }
  // It acknowledges; a kernel with the connector and without CONFIG_PROC_EVENTS says nothing.
  pollfd entry{fd.get(), POLLIN, 0};
  if (::poll(&entry, 1, kAckMilliseconds) != 1) {
    return fail(Code::kUnimplemented, "this kernel tells no process events (CONFIG_PROC_EVENTS)");
  }
  return ProcessEvents(std::move(fd));
}

Result<ProcessEvents::Counts> ProcessEvents::take() {
  Counts counts;
  Message<proc_event> message{};
  for (;;) {
    const ssize_t size = ::recv(socket_.get(), message.data(), message.size(), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return counts;
    if (size < 0 && errno == ENOBUFS) {
      return fail(Code::kDataLoss, "more process events than the socket's buffer holds");
    }
    if (size < 0) return fail_errno("recv", "process events");
    if (static_cast<std::size_t>(size) < message.size()) continue;
    proc_event event{};
    std::memcpy(&event, message.data() + kHeaders, sizeof event);
    const auto what = static_cast<unsigned>(event.what);
    if (what == kExec) ++counts.execs;
    if (what == kFork && event.event_data.fork.child_pid == event.event_data.fork.child_tgid) {
      ++counts.forks;
    }
  }
}

}  // namespace kuasar::os
