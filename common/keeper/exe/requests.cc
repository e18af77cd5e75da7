#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/version.h"
#include "keeper/exe/keeper.h"
#include "os/process_end.h"

namespace kuasar::keeper {
namespace {

alignas(16) char child_stack[os::kChildStackSize];
const char* strings[wire::kMaxStrings + 4];

constexpr int kAnyNumber = -1;

// How many descriptors a request must bring.
int wanted_fds(std::uint16_t type) {
  if (type == wire::kSpawn) return kAnyNumber;
  const bool one = type == wire::kUpgrade || type == wire::kAccept || type == wire::kHold ||
                   type == wire::kAdopt;
  return one ? 1 : 0;
}

bool wants_name(std::uint16_t type) {
  return type == wire::kAccept || type == wire::kHold || type == wire::kDrop ||
         type == wire::kSpawn || type == wire::kAdopt || type == wire::kStatus ||
         type == wire::kAck;
}

}  // namespace

void Keeper::serve(Peer& peer, Request& request) {
  const wire::Message& message = request.message;
  const std::uint16_t type = message.header.type;
  const std::uint32_t sequence = message.header.sequence;
  if (type == wire::kHello) return hello(peer, message);
  if (&peer != &daemon_) {
    refuse(peer, sequence, EBADMSG, "the first message of a daemon is HELLO");
    if (peer.fd >= 0) disconnect(peer);
    return;
  }
  if (message.header.version != wire::kVersion && type != wire::kUpgrade) {
    return refuse(
        peer, sequence, ENOTSUP,
        words("version %d of the protocol, not %d", wire::kVersion, message.header.version));
  }
  const int wanted = wanted_fds(type);
  if (wanted != kAnyNumber && request.fd_count != wanted) {
    return refuse(peer, sequence, EINVAL,
                  words("%d descriptors came instead of %d", request.fd_count, wanted));
  }
  if (wants_name(type) && message.header.name_size == 0) {
    return refuse(peer, sequence, EINVAL, "the request needs a name");
  }
  int error = 0;
  const char* why = nullptr;
  switch (type) {
    case wire::kUpgrade: return upgrade(peer, request);
    case wire::kList: return list(peer, sequence);
    case wire::kSpawn: return spawn(peer, request);
    case wire::kAdopt: return adopt(peer, request);
    case wire::kStatus: return status(peer, message, false);
    case wire::kAck: return status(peer, message, true);
    case wire::kReap: return reap(peer, message);
    case wire::kQuit: return quit(peer, sequence);
    case wire::kAccept: why = hold(request, true, error); break;
    case wire::kHold: why = hold(request, false, error); break;
    case wire::kDrop: let_go(held_.find(message.name, message.header.name_size)); break;
    default: return refuse(peer, sequence, ENOTSUP, words("no request has the number %d", type));
  }
  if (why != nullptr) return refuse(peer, sequence, error, why);
  answer(peer, sequence);
}

void Keeper::hello(Peer& peer, const wire::Message& message) {
  const std::uint32_t sequence = message.header.sequence;
  wire::Hello hello{};
  if (!wire::read_body(message, hello)) {
    return refuse(peer, sequence, EBADMSG, "HELLO has another size");
  }
  if (!become_daemon(peer)) {
    return refuse(peer, sequence, EBUSY, words("the daemon %d does not die", daemon_.pid));
  }
  if (hello.next_connection > next_connection_) next_connection_ = hello.next_connection;
  struct stat mounts {};
  stat("/proc/self/ns/mnt", &mounts);
  const wire::HelloAnswer body{mounts.st_dev, mounts.st_ino, getpid(), 0};
  answer(daemon_, sequence, kuasar::version().data(), &body, sizeof body);
}

const char* Keeper::hold(Request& request, bool accepting, int& error) {
  const wire::Header& header = request.message.header;
  const int fd = request.fds[0];
  const char* name = request.message.name;
  std::size_t size = header.name_size;
  error = EINVAL;
  if (accepting) {
    int listens = 0;
    socklen_t length = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens == 0) {
      return "this descriptor is no listening socket";
    }
    // A connection's number needs 20 digits and a '/'.
    if (size > wire::kMaxName - 21) return "the kind of a listening socket has at most 298 bytes";
    name = words("%s%.*s", wire::kListenPrefix, static_cast<int>(size), name);
    size += sizeof wire::kListenPrefix - 1;
  }
  Held* held = held_.find(name, size);
  if (held == nullptr) {
    held = held_.add(name, size);
    if (held == nullptr) {
      error = ENOMEM;
      return "no memory for another descriptor";
    }
    held->fd = -1;
  }
  if (held->accepting) unwatch(held->fd);
  if (held->fd >= 0) close(held->fd);
  held->fd = fd;
  held->accepting = accepting;
  held->untold = false;
  request.fds[0] = -1;
  if (!accepting) return nullptr;
  // Two processes may be asked to accept the same connection: the loser must not wait.
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  if (watch(kListener, fd, EPOLLIN)) return nullptr;
  error = errno;
  let_go(held);
  return "this descriptor cannot be watched";
}

void Keeper::let_go(Held* held) {
  if (held == nullptr) return;
  if (held->accepting) unwatch(held->fd);
  close(held->fd);
  held_.remove(held);
}

void Keeper::list(Peer& peer, std::uint32_t sequence) {
  wire::Header header{};
  header.sequence = sequence;
  header.type = wire::kListHeld;
  for (Held& held : held_) {
    const wire::HeldInfo info{held.accepting ? 1U : 0U};
    held.untold = false;
    if (!send(peer, header, names_.text(held.name), held.name.size, &info, sizeof info, held.fd,
              1000))
      return;
  }
  header.type = wire::kListChild;
  for (const Child& child : children_) {
    if (!send(peer, header, names_.text(child.name), child.name.size, &child.info,
              sizeof child.info, child.fd, 1000))
      return;
  }
  answer(peer, sequence);
}

void Keeper::answer_child(Peer& peer, std::uint32_t sequence, const Child& child, bool with_fd) {
  answer(peer, sequence, nullptr, &child.info, sizeof child.info, with_fd ? child.fd : -1);
}

void Keeper::spawn(Peer& peer, Request& request) {
  const wire::Message& message = request.message;
  const std::uint32_t sequence = message.header.sequence;
  Child* child = children_.find(message.name, message.header.name_size);
  if (child != nullptr) return answer_child(peer, sequence, *child, true);
  wire::SpawnView view{};
  if (!wire::decode_spawn(message.body, message.header.body_size, view, strings) ||
      static_cast<int>(view.fixed.fd_count) != request.fd_count) {
    return refuse(peer, sequence, EINVAL, "the description of the process is malformed");
  }
  char key[sizeof wire::kKeyVariable + wire::kMaxName];
  snprintf(key, sizeof key, "%s%.*s", wire::kKeyVariable,
           static_cast<int>(message.header.name_size), message.name);
  view.envp[view.fixed.envc] = key;
  view.envp[view.fixed.envc + 1] = nullptr;
  const std::uint32_t flags = view.fixed.flags;
  const rlimit given{view.fixed.file_limit_soft, view.fixed.file_limit_hard};
  os::ChildPlan plan;
  plan.file = view.program;
  plan.argv = const_cast<char* const*>(view.argv);
  plan.envp = const_cast<char* const*>(view.envp);
  plan.cwd = *view.cwd == '\0' ? "/" : view.cwd;
  plan.null_fd = null_;
  plan.fd_count = request.fd_count;
  for (int i = 0; i < plan.fd_count; ++i) plan.fds[i] = {request.fds[i], view.fixed.child_fds[i]};
  plan.file_limit = (flags & wire::kSetFileLimit) != 0 ? &given : &file_limit_;
  plan.new_pid_namespace = (flags & wire::kNewPidNamespace) != 0;
  plan.new_mount_namespace = (flags & wire::kNewMountNamespace) != 0;
  // Its place first: nothing may fail once it runs.
  child = children_.add(message.name, message.header.name_size);
  if (child == nullptr) return refuse(peer, sequence, ENOMEM, "find memory for");
  child->info.pid = os::clone_child(plan, child_stack, child->fd);
  if (child->info.pid < 0) {
    children_.remove(child);
    return refuse(peer, sequence, plan.err, plan.step);
  }
  if ((flags & wire::kSpawnLeavesOrphans) != 0) child->info.flags = wire::kLeavesOrphans;
  watch(kChildEnd, child->fd, EPOLLIN);
  answer_child(peer, sequence, *child, true);
}

void Keeper::adopt(Peer& peer, Request& request) {
  const wire::Message& message = request.message;
  const std::uint32_t sequence = message.header.sequence;
  Child* child = children_.find(message.name, message.header.name_size);
  if (child == nullptr) {
    wire::ChildInfo info{};
    if (!wire::read_body(message, info)) {
      return refuse(peer, sequence, EINVAL, "the description of the process is malformed");
    }
    // ESRCH: a process that has ended and was reaped by somebody else.
    if (syscall(SYS_pidfd_send_signal, request.fds[0], 0, nullptr, 0) != 0 && errno != ESRCH &&
        errno != EPERM) {
      return refuse(peer, sequence, EINVAL, "this descriptor is no pidfd");
    }
    child = children_.add(message.name, message.header.name_size);
    if (child == nullptr) return refuse(peer, sequence, ENOMEM, "no memory for another process");
    child->fd = request.fds[0];
    request.fds[0] = -1;
    child->info.pid = info.pid;
    child->info.flags = info.flags & wire::kLeavesOrphans;
    watch(kChildEnd, child->fd, EPOLLIN);
    note_end(*child);
  }
  answer_child(peer, sequence, *child, false);
}

// Leaves the zombie: its pid is not used again before the daemon has written its end down.
void Keeper::note_end(Child& child) {
  pollfd entry{child.fd, POLLIN, 0};
  if ((child.info.flags & wire::kEnded) != 0 || poll(&entry, 1, 0) != 1) return;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const os::ProcessEnd end = os::read_process_end(child.fd, child.info.pid);
  child.info.ended_at_ns = static_cast<std::int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
  child.info.code = end.code;
  child.info.flags |= wire::kEnded | (end.known ? wire::kKnown : 0);
  unwatch(child.fd);
}

void Keeper::forget(Child* child) {
  siginfo_t info{};
  waitid(static_cast<idtype_t>(3 /* P_PIDFD */), static_cast<id_t>(child->fd), &info,
         WEXITED | WNOHANG);
  close(child->fd);
  children_.remove(child);
}

void Keeper::status(Peer& peer, const wire::Message& message, bool acknowledge) {
  const std::uint32_t sequence = message.header.sequence;
  Child* child = children_.find(message.name, message.header.name_size);
  if (child == nullptr) return refuse(peer, sequence, ENOENT, "no process has this key");
  note_end(*child);
  const Child copy = *child;
  if (acknowledge) {
    if ((copy.info.flags & wire::kEnded) == 0) {
      return refuse(peer, sequence, EBUSY, "the process runs");
    }
    forget(child);
  }
  answer_child(peer, sequence, copy, false);
}

void Keeper::reap(Peer& peer, const wire::Message& message) {
  const std::uint32_t sequence = message.header.sequence;
  wire::Reap reap{};
  if (!wire::read_body(message, reap) || reap.pid <= 0) {
    return refuse(peer, sequence, EINVAL, "a zombie is named by its pid");
  }
  for (const Child& child : children_) {
    if (child.info.pid == reap.pid) {
      return refuse(peer, sequence, EBUSY, "a key names this process");
    }
  }
  siginfo_t info{};
  if (waitid(P_PID, static_cast<id_t>(reap.pid), &info, WEXITED | WNOHANG) != 0) {
    return refuse(peer, sequence, errno, "no such child of the keeper");
  }
  if (info.si_pid == 0) return refuse(peer, sequence, EBUSY, "the process runs");
  answer(peer, sequence);
}

void Keeper::quit(Peer& peer, std::uint32_t sequence) {
  if (children_.count() > 0) {
    return refuse(peer, sequence, EBUSY, words("%zu processes are still named", children_.count()));
  }
  unlink(path_);
  answer(peer, sequence);
  done_ = true;
}

}  // namespace kuasar::keeper
