#include "keeper/exe/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace kuasar::keeper {
namespace {

char incoming[wire::kMaxMessage + 1];
char outgoing[wire::kMaxMessage];

int peer_pidfd(int fd, pid_t pid) {
  int pidfd = -1;
  socklen_t size = sizeof pidfd;
  // SO_PEERPIDFD, Linux 6.5; before that the pid may be another's, unless the peer still is there.
  if (getsockopt(fd, SOL_SOCKET, 77, &pidfd, &size) == 0) return pidfd;
  pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  pollfd entry{fd, 0, 0};
  if (pidfd >= 0 && (poll(&entry, 1, 0) != 0 || pid == getpid())) {
    close(pidfd);
    pidfd = -1;
  }
  return pidfd;
}

}  // namespace

std::int64_t monotonic_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

bool Keeper::start() {
  // Children that an OCI runtime orphans come to us.
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  prctl(PR_SET_NAME, "kuasar-keeper", 0, 0, 0);
  if (file_limit_.rlim_max == 0 && getrlimit(RLIMIT_NOFILE, &file_limit_) == 0) {
    const rlimit raised{file_limit_.rlim_max, file_limit_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &raised);
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  null_ = open("/dev/null", O_RDWR | O_CLOEXEC);
  self_ = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  if (epoll_ < 0 || null_ < 0 || self_ < 0 || !watch(kSignal, signals_, EPOLLIN) ||
      !watch(kSocket, socket_, EPOLLIN)) {
    say(3, "cannot start: %s", strerror(errno));
    return false;
  }
  for (Held& held : held_) {
    if (held.accepting) watch(kListener, held.fd, EPOLLIN);
  }
  for (Child& child : children_) {
    if ((child.info.flags & wire::kEnded) == 0) watch(kChildEnd, child.fd, EPOLLIN);
  }
  if (daemon_.fd >= 0) watch(kPeer, daemon_.fd, EPOLLIN);
  return true;
}

bool Keeper::watch(Source source, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<std::uint64_t>(source) << 32 | static_cast<std::uint32_t>(fd);
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0) return true;
  return errno == EEXIST && epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event) == 0;
}

// Before every close: a duplicate elsewhere would keep the entry alive.
void Keeper::unwatch(int fd) {
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
}

int Keeper::run() {
  if (!start()) return 1;
  while (!done_) {
    std::int64_t timeout = -1;
    if (retry_at_ != 0) {
      timeout = retry_at_ - monotonic_ms();
      if (timeout < 0) timeout = 0;
    }
    epoll_event events[16];
    const int count = epoll_wait(epoll_, events, 16, static_cast<int>(timeout));
    for (int i = 0; i < count && !done_; ++i) {
      handle(static_cast<Source>(events[i].data.u64 >> 32), static_cast<int>(events[i].data.u64));
    }
    if (retry_at_ != 0 && monotonic_ms() >= retry_at_) retry();
  }
  return exit_code_;
}

// A descriptor may have been closed, and its number used again, earlier in the same round: every
// handler looks up what the number is now, and finding nothing to do is no error.
void Keeper::handle(Source source, int fd) {
  if (source == kSocket) return accept_peer();
  if (source == kListener) return accept_connections(fd);
  if (source == kSignal) {
    say(6, "ends on a signal; %zu children go on", children_.count());
    unlink(path_);
    done_ = true;
    return;
  }
  if (source == kChildEnd) {
    Child* child = children_.find_fd(fd);
    if (child != nullptr) note_end(*child);
    return;
  }
  if (daemon_.fd == fd) return read_peer(daemon_);
  for (Peer& peer : pending_) {
    if (peer.fd == fd) return read_peer(peer);
  }
}

void Keeper::accept_peer() {
  Peer peer;
  peer.fd = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (peer.fd < 0) {
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      unwatch(socket_);
      pause();
    }
    return;
  }
  ucred who{};
  socklen_t size = sizeof who;
  getsockopt(peer.fd, SOL_SOCKET, SO_PEERCRED, &who, &size);
  peer.pid = who.pid;
  if (who.uid != geteuid() && who.uid != 0) {
    say(4, "refuses a connection of uid %u, pid %d", who.uid, who.pid);
    refuse(peer, 0, EPERM, words("uid %u may not use the keeper of uid %u", who.uid, geteuid()));
    return disconnect(peer);
  }
  peer.pidfd = peer_pidfd(peer.fd, who.pid);
  // The oldest stands first.
  int place = 0;
  while (place < kMaxPending && pending_[place].fd >= 0) ++place;
  if (place == kMaxPending) {
    disconnect(pending_[0]);
    memmove(&pending_[0], &pending_[1], sizeof(Peer) * (kMaxPending - 1));
    place = kMaxPending - 1;
  }
  pending_[place] = peer;
  if (!watch(kPeer, peer.fd, EPOLLIN)) disconnect(pending_[place]);
}

void Keeper::disconnect(Peer& peer) {
  unwatch(peer.fd);
  close(peer.fd);
  if (peer.pidfd >= 0) close(peer.pidfd);
  peer = Peer{};
}

// The old daemon's calls would be answered twice: it is dead before the new one is served.
bool Keeper::become_daemon(Peer& newcomer) {
  if (&newcomer == &daemon_) return true;
  if (daemon_.fd >= 0) {
    if (daemon_.pid != newcomer.pid && daemon_.pidfd >= 0) {
      say(4, "ends daemon %d, which %d replaces", daemon_.pid, newcomer.pid);
      syscall(SYS_pidfd_send_signal, daemon_.pidfd, SIGKILL, nullptr, 0);
      pollfd entry{daemon_.pidfd, POLLIN, 0};
      if (poll(&entry, 1, 5000) != 1) return false;
    }
    disconnect(daemon_);
  }
  daemon_ = newcomer;
  newcomer = Peer{};
  return true;
}

void Keeper::accept_connections(int fd) {
  for (int i = 0; i < 16; ++i) {
    Held* listener = held_.find_fd(fd);
    if (listener == nullptr || !listener->accepting) return;
    const int connection = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection < 0) {
      if (errno == EAGAIN) return;
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // EMFILE, or a socket that was shut down: not at once again.
      unwatch(fd);
      return pause();
    }
    const int kind = static_cast<int>(listener->name.size - (sizeof wire::kListenPrefix - 1));
    const char* name =
        words("%.*s/%llu", kind, names_.text(listener->name) + sizeof wire::kListenPrefix - 1,
              static_cast<unsigned long long>(next_connection_++));
    Held* held = held_.add(name, strlen(name));
    if (held == nullptr) {
      close(connection);
      unwatch(fd);
      return pause();
    }
    held->fd = connection;
    held->untold = daemon_.fd >= 0;
    if (held->untold) tell_accepted(*held);
  }
}

// False when the daemon's socket is full.
bool Keeper::tell_accepted(Held& held) {
  wire::Header header{};
  header.type = wire::kAccepted;
  const bool told =
      send(daemon_, header, names_.text(held.name), held.name.size, nullptr, 0, held.fd, 0);
  // Without a daemon there is nobody to tell: the next one lists.
  held.untold = !told && daemon_.fd >= 0;
  if (held.untold) pause();
  return told;
}

void Keeper::pause() {
  if (retry_at_ == 0) retry_at_ = monotonic_ms() + kRetryMs;
}

void Keeper::retry() {
  retry_at_ = 0;
  watch(kSocket, socket_, EPOLLIN);
  for (Held& held : held_) {
    if (held.accepting) watch(kListener, held.fd, EPOLLIN);
  }
  for (Held& held : held_) {
    if (held.untold && !tell_accepted(held)) return;
  }
}

void Keeper::read_peer(Peer& peer) {
  Request request{};
  iovec part{incoming, sizeof incoming};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof request.fds)];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t size = recvmsg(peer.fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); size >= 0 && c != nullptr;
       c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    request.fd_count = static_cast<int>((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(request.fds, CMSG_DATA(c), static_cast<std::size_t>(request.fd_count) * sizeof(int));
  }
  if (size <= 0) {
    disconnect(peer);
  } else if ((header.msg_flags & MSG_TRUNC) != 0 ||
             !wire::decode(incoming, static_cast<std::size_t>(size), request.message)) {
    say(4, "closes the connection of pid %d: %zd bytes that are no message", peer.pid, size);
    refuse(peer, 0, EBADMSG, "this is no message of a Kuasar daemon");
    if (peer.fd >= 0) disconnect(peer);
  } else if ((header.msg_flags & MSG_CTRUNC) != 0) {
    refuse(peer, request.message.header.sequence, EMFILE,
           "not all descriptors arrived: too many, or the keeper's limit is reached");
  } else {
    serve(peer, request);
  }
  for (int i = 0; i < request.fd_count; ++i) {
    if (request.fds[i] >= 0) close(request.fds[i]);
  }
}

// A peer that does not read for `wait_ms` is cut off; with 0 it is false and nothing was sent.
bool Keeper::send(Peer& peer, wire::Header header, const char* name, std::size_t name_size,
                  const void* body, std::size_t body_size, int fd, int wait_ms) {
  header.version = wire::kVersion;
  iovec part{outgoing, wire::encode(outgoing, header, name, name_size, body, body_size)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  const std::int64_t deadline = monotonic_ms() + wait_ms;
  while (peer.fd >= 0) {
    if (sendmsg(peer.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
    const int error = errno;
    const bool full = error == EAGAIN || error == ETOOMANYREFS || error == EINTR;
    if (full && wait_ms == 0) return false;
    if (full && monotonic_ms() < deadline) {
      pollfd entry{peer.fd, POLLOUT, 0};
      // Too many descriptors in flight: it is writable all the same.
      if (error == ETOOMANYREFS) entry.events = 0;
      poll(&entry, 1, error == ETOOMANYREFS ? 2 : 100);
      continue;
    }
    say(4, "closes the connection of pid %d, which cannot be answered: %s", peer.pid,
        strerror(error));
    disconnect(peer);
  }
  return false;
}

void Keeper::answer(Peer& peer, std::uint32_t sequence, const char* name, const void* body,
                    std::size_t body_size, int fd) {
  wire::Header header{};
  header.type = wire::kAnswer;
  header.sequence = sequence;
  send(peer, header, name, name == nullptr ? 0 : strlen(name), body, body_size, fd, 1000);
}

void Keeper::refuse(Peer& peer, std::uint32_t sequence, int error, const char* text) {
  wire::Header header{};
  header.type = wire::kAnswer;
  header.sequence = sequence;
  header.error = error;
  send(peer, header, nullptr, 0, text, strlen(text), -1, 1000);
}

}  // namespace kuasar::keeper
