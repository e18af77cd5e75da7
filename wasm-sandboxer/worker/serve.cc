#include "worker/serve.h"

#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "worker/plan.h"

namespace kuasar::wasm {
namespace {

struct Received {
  Request request;
  std::vector<int> fds;
};

// False at the end of the connection.
bool receive(Received& received) {
  iovec bytes{&received.request, sizeof received.request};
  alignas(cmsghdr) static char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t size;
  while ((size = ::recvmsg(kZygoteSocket, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  if (size != sizeof received.request || (message.msg_flags & MSG_CTRUNC) != 0) return false;
  received.fds.clear();
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    received.fds.resize(count);
    std::memcpy(received.fds.data(), CMSG_DATA(header), count * sizeof(int));
  }
  return received.fds.size() > kControlFd;
}

// Where a child has been born.
struct Birth {
  long pid = -1;
  bool in_cgroup = false;
};

// The child inherits our own exit signal; clone3(2) takes none together with CLONE_PARENT.
// `cgroup`: the descriptor of a v2 cgroup or kNone.
Birth clone_child(const Request& request, int cgroup) {
  clone_args args{};
  args.flags = CLONE_PARENT;
  if (request.new_pid != 0) args.flags |= CLONE_NEWPID;
  if (request.new_mounts != 0) args.flags |= CLONE_NEWNS;
  if (request.new_network != 0) args.flags |= CLONE_NEWNET;
  if (cgroup != kNone) {
    clone_args into = args;
    into.flags |= CLONE_INTO_CGROUP;
    into.cgroup = static_cast<std::uint64_t>(cgroup);
    const long pid = ::syscall(SYS_clone3, &into, sizeof into);
    if (pid >= 0) return {pid, true};
  }
  return {::syscall(SYS_clone3, &args, sizeof args), false};
}

// In the child: pid 0.
Birth make_child(const Received& received, int own_pid_namespace) {
  const auto fd_of = [&](int index) {
    return index == kNone ? kNone : received.fds[static_cast<std::size_t>(index)];
  };
  const int cgroup = fd_of(received.request.cgroup);
  const int pid_namespace = fd_of(received.request.pid_namespace);
  if (pid_namespace == kNone) return clone_child(received.request, cgroup);
  // For the next child only.
  if (::setns(pid_namespace, CLONE_NEWPID) != 0) return {};
  const Birth birth = clone_child(received.request, cgroup);
  if (birth.pid == 0) return birth;
  const int err = errno;
  if (::setns(own_pid_namespace, CLONE_NEWPID) != 0) ::_exit(1);
  errno = err;
  return birth;
}

}  // namespace

void serve(const Inheritance& zygote) {
  Received received;
  while (receive(received)) {
    const auto [pid, in_cgroup] = make_child(received, zygote.own_pid_namespace);
    if (pid == 0) {
      ::close(kZygoteSocket);
      run_child(zygote, received.fds, in_cgroup);
    }
    const Answer answer{received.request.sequence,
                        static_cast<std::int32_t>(pid < 0 ? -errno : pid)};
    for (const int fd : received.fds) ::close(fd);
    if (::send(kZygoteSocket, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) break;
  }
  ::_exit(0);
}

}  // namespace kuasar::wasm
