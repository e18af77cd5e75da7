#include "keeper/exe/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <utility>

#include "base/version.h"
#include "os/process_end.h"

namespace kuasar::keeper {
namespace {

constexpr int kRetryMs = 100;
constexpr int kPatienceMs = 1000;
constexpr int kDeathMs = 5000;
constexpr int kAnyNumber = -1;
constexpr char kMalformed[] = "the description of the process is malformed";

// One byte more than a message has: a longer packet is none.
char incoming[wire::kMaxMessage + 1];
char outgoing[wire::kMaxMessage];
alignas(16) char child_stack[os::kChildStackSize];

// -1: the socket does not say, or is none.
int socket_option(int fd, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool is_pidfd(int fd) {
  // ESRCH: it has ended and was reaped by somebody else.
  return syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) == 0 || errno == ESRCH || errno == EPERM;
}

int peer_pidfd(int fd, pid_t pid) {
  // SO_PEERPIDFD, Linux 6.5; before that the pid may be another's, unless the peer still is there.
  int pidfd = socket_option(fd, 77);
  if (pidfd >= 0) return pidfd;
  pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  pollfd entry{fd, 0, 0};
  if (poll(&entry, 1, 0) == 0) return pidfd;
  close(pidfd);
  return -1;
}

}  // namespace

int Keeper::run() {
  // Children that an OCI runtime orphans come to us.
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  prctl(PR_SET_NAME, "kuasar-keeper", 0, 0, 0);
  // Environments of pods pass through its memory: no core file.
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  null_ = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (epoll_ < 0 || null_ < 0) {
    say(words("cannot start: %s", strerror(errno)));
    return 1;
  }
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  sigprocmask(SIG_BLOCK, &chld, nullptr);
  signals_ = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
  dup2(null_, STDIN_FILENO);
  dup2(null_, STDOUT_FILENO);
  watch_all();
  for (;;) {
    int timeout = reap_strays();
    const bool again = retry_;
    if (again && (timeout < 0 || timeout > kRetryMs)) timeout = kRetryMs;
    epoll_event events[16];
    const int count = epoll_wait(epoll_, events, 16, timeout);
    if (again) watch_all();
    for (int i = 0; i < count; ++i) handle(events[i].data.fd);
  }
}

// A descriptor may have been closed, and its number used again, earlier in the same round: what the
// number is now is looked up, and finding nothing to do is no error.
void Keeper::handle(int fd) {
  if (fd == state_.socket) return accept_peer();
  if (fd == signals_) {
    signalfd_siginfo info;
    while (read(signals_, &info, sizeof info) > 0) strays_due_ = true;
    return;
  }
  if (fd == state_.daemon.fd) return read_peer(state_.daemon);
  for (Peer& peer : pending_) {
    if (fd == peer.fd) return read_peer(peer);
  }
  Entry* entry = table_.find(fd);
  if (entry == nullptr) return;
  if (entry->accepts()) return accept_connection(*entry);
  note_end(*entry);
}

void Keeper::watch(int fd) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0 && errno != EEXIST) retry_ = true;
}

void Keeper::watch_all() {
  retry_ = false;
  watch(state_.socket);
  watch(signals_);
  if (state_.daemon.fd >= 0) watch(state_.daemon.fd);
  for (Entry* entry = table_.begin(); entry != table_.end(); entry = entry->next()) {
    if (entry->accepts() || entry->runs()) watch(entry->fd);
  }
}

// -1: nothing was accepted. Without room, or a free descriptor, it is not tried again at once.
int Keeper::accept_one(int listener, bool room) {
  const int fd = room ? accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
  if (fd < 0 && !(room && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))) {
    unwatch(listener);
    retry_ = true;
  }
  return fd;
}

void Keeper::accept_peer() {
  Peer peer{accept_one(state_.socket, true)};
  if (peer.fd < 0) return;
  ucred who{};
  socklen_t size = sizeof who;
  getsockopt(peer.fd, SOL_SOCKET, SO_PEERCRED, &who, &size);
  peer.pid = who.pid;
  if (who.uid != geteuid() && who.uid != 0) {
    const char* why = words("uid %u may not use the keeper of uid %u", who.uid, geteuid());
    say(why);
    send(peer, wire::kAnswer, 0, refusal(EPERM, why));
    return disconnect(peer);
  }
  peer.pidfd = peer_pidfd(peer.fd, who.pid);
  // Only so many wait to be greeted: the oldest goes.
  Peer& place = pending_[peers_++ % std::size(pending_)];
  disconnect(place);
  place = peer;
  watch(peer.fd);
}

void Keeper::disconnect(Peer& peer) {
  close(peer.fd);
  close(peer.pidfd);
  peer = Peer{};
}

void Keeper::accept_connection(const Entry& listener) {
  // What we have no place for, or the daemon no room to be told of, stays in the backlog.
  pollfd daemon{state_.daemon.fd, POLLOUT, 0};
  const bool room = !table_.full() && (daemon.fd < 0 || poll(&daemon, 1, 0) == 1);
  const int fd = accept_one(listener.fd, room);
  if (fd < 0) return;
  std::string_view kind = listener.name();
  kind.remove_prefix(sizeof wire::kListenPrefix - 1);
  const char* name =
      words("%.*s/%" PRIu64, static_cast<int>(kind.size()), kind.data(), state_.next_connection++);
  tell(*table_.add(name, fd, {}));
}

void Keeper::tell(const Entry& entry) {
  send(state_.daemon, wire::kHeld, 0,
       {.name = entry.name(), .body = wire::bytes_of(entry.info), .fd = entry.fd});
}

void Keeper::read_peer(Peer& peer) {
  Request request{&peer, receive_packet(peer.fd, incoming, sizeof incoming), {}};
  const Packet& packet = request.packet;
  if (packet.size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const wire::Header& header = request.message.header;
  Reply reply;
  if (packet.size <= 0) {
    disconnect(peer);
  } else if (!wire::decode(incoming, static_cast<std::size_t>(packet.size), request.message)) {
    reply = refusal(EBADMSG, "this is no message of a Kuasar daemon");
  } else if (&peer != &state_.daemon && header.type != wire::kHello) {
    reply = refusal(EBADMSG, "the first message of a daemon is HELLO");
  } else if (packet.fds_lost) {
    reply = refusal(EMFILE, "not all descriptors arrived: too many, or the limit is reached");
  } else {
    reply = serve(request);
  }
  send(*request.from, wire::kAnswer, header.sequence, reply);
  if (reply.error == EBADMSG) {
    say(words("closes the connection of pid %d, which is no daemon", peer.pid));
    disconnect(peer);
  }
  for (int i = 0; i < packet.fd_count; ++i) close(packet.fds[i]);
}

// A peer that does not read is cut off.
void Keeper::send(Peer& peer, std::uint16_t type, std::uint32_t sequence, const Reply& reply) {
  const wire::Header header{.type = type, .sequence = sequence, .error = reply.error};
  const std::size_t size = wire::encode(outgoing, header, reply.name, reply.body);
  for (int waited = 0; peer.fd >= 0; ++waited) {
    if (send_packet(peer.fd, outgoing, size, &reply.fd, reply.fd >= 0 ? 1 : 0)) return;
    // ETOOMANYREFS: too many descriptors are on their way to it.
    const bool full = errno == EAGAIN || errno == ETOOMANYREFS || errno == EINTR;
    if (full && waited < kPatienceMs) {
      poll(nullptr, 0, 1);
    } else {
      say(words("cannot answer pid %d: %s", peer.pid, strerror(errno)));
      disconnect(peer);
    }
  }
}

Reply Keeper::serve(Request& request) {
  static constexpr struct {
    std::uint16_t type;
    int fds;
    bool named;
    Reply (Keeper::*serve)(Request&);
  } kHandlers[] = {
      {wire::kHello, 0, false, &Keeper::hello},
      {wire::kUpgrade, 1, false, &Keeper::upgrade},
      {wire::kAccept, 1, true, &Keeper::hold},
      {wire::kHold, 1, true, &Keeper::hold},
      {wire::kDrop, 0, true, &Keeper::drop},
      {wire::kList, 0, false, &Keeper::list},
      {wire::kSpawn, kAnyNumber, true, &Keeper::spawn},
      {wire::kAdopt, 1, true, &Keeper::hold},
      {wire::kStatus, 0, true, &Keeper::status},
      {wire::kAck, 0, true, &Keeper::status},
  };
  const wire::Header& header = request.message.header;
  const int fds = request.packet.fd_count;
  // HELLO and UPGRADE are the same in every version.
  if (header.version != wire::kVersion && header.type > wire::kUpgrade) {
    return refusal(ENOTSUP, words("the keeper speaks version %d", wire::kVersion));
  }
  for (const auto& handler : kHandlers) {
    if (handler.type != header.type) continue;
    if (handler.fds != kAnyNumber && handler.fds != fds) {
      return refusal(EINVAL, words("%d descriptors came instead of %d", fds, handler.fds));
    }
    if (handler.named && request.message.name.empty())
      return refusal(EINVAL, "the request needs a name");
    return (this->*handler.serve)(request);
  }
  return refusal(ENOTSUP, words("no request has the number %d", header.type));
}

Reply Keeper::hello(Request& request) {
  wire::Hello hello{};
  if (!wire::read_body(request.message, hello)) return refusal(EBADMSG, "HELLO has another size");
  Peer& newcomer = *request.from;
  if (&newcomer != &state_.daemon) {
    // Its calls would be answered twice: the old daemon is dead before the new one is served.
    if (state_.daemon.pidfd >= 0 && state_.daemon.pid != newcomer.pid) {
      say(words("ends daemon %d, which %d replaces", state_.daemon.pid, newcomer.pid));
      syscall(SYS_pidfd_send_signal, state_.daemon.pidfd, SIGKILL, nullptr, 0);
      pollfd entry{state_.daemon.pidfd, POLLIN, 0};
      if (poll(&entry, 1, kDeathMs) != 1) {
        return refusal(EBUSY, words("the daemon %d does not die", state_.daemon.pid));
      }
    }
    disconnect(state_.daemon);
    state_.daemon = std::exchange(newcomer, Peer{});
    request.from = &state_.daemon;
  }
  if (hello.next_connection > state_.next_connection)
    state_.next_connection = hello.next_connection;
  struct stat mounts {};
  stat("/proc/self/ns/mnt", &mounts);
  static wire::HelloAnswer body;
  body = {mounts.st_dev, mounts.st_ino, getpid(), 0};
  return {.name = kuasar::version(), .body = wire::bytes_of(body)};
}

// A descriptor, a listening socket or a process.
Reply Keeper::hold(Request& request) {
  const wire::Message& message = request.message;
  const int fd = request.packet.fds[0];
  wire::Info info{};
  if (message.header.type == wire::kAccept) {
    if (socket_option(fd, SO_ACCEPTCONN) != 1)
      return refusal(EINVAL, "this descriptor is no listening socket");
    if (!wire::valid_listener(message.name))
      return refusal(EINVAL, "no name of a listening socket");
    // Two processes may be asked to accept the same connection: the loser must not wait.
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    info.flags = wire::kAccepting;
  } else if (message.header.type == wire::kAdopt) {
    if (!wire::read_body(message, info) || info.pid <= 0) return refusal(EINVAL, kMalformed);
    if (!is_pidfd(fd)) return refusal(EINVAL, "this descriptor is no pidfd");
    info = {.pid = info.pid, .flags = info.flags & wire::kLeavesOrphans};
  }
  Entry* entry = table_.find(message.name, info.pid != 0);
  if (entry != nullptr && entry->is_child()) return {.body = wire::bytes_of(entry->info)};
  if (entry != nullptr) let_go(*entry);
  entry = table_.add(message.name, fd, info);
  if (entry == nullptr) return refusal(ENOMEM, "the table is full");
  request.packet.fds[0] = -1;
  if (message.header.type != wire::kHold) watch(fd);
  note_end(*entry);
  return {.body = wire::bytes_of(entry->info)};
}

Reply Keeper::drop(Request& request) {
  if (Entry* held = table_.find(request.message.name, false)) let_go(*held);
  return {};
}

void Keeper::let_go(Entry& entry) {
  unwatch(entry.fd);
  close(entry.fd);
  table_.remove(entry);
}

Reply Keeper::list(Request&) {
  for (Entry* entry = table_.begin(); entry != table_.end(); entry = entry->next()) tell(*entry);
  return {};
}

Reply Keeper::spawn(Request& request) {
  if (const Entry* known = table_.find(request.message.name, true)) {
    return {.body = wire::bytes_of(known->info), .fd = known->fd};
  }
  static wire::SpawnPlan plan;
  if (!wire::decode_spawn(request.message.body, request.packet.fds, request.packet.fd_count,
                          plan)) {
    return refusal(EINVAL, kMalformed);
  }
  plan.child.null_fd = null_;
  // Its place first: nothing may fail once it runs.
  const wire::Info info{.flags = plan.flags & wire::kLeavesOrphans};
  Entry* child = table_.add(request.message.name, -1, info);
  if (child == nullptr) return refusal(ENOMEM, "find a place for");
  child->info.pid = os::clone_child(plan.child, child_stack, child->fd);
  if (child->info.pid < 0) {
    table_.remove(*child);
    return refusal(plan.child.err, plan.child.step);
  }
  watch(child->fd);
  return {.body = wire::bytes_of(child->info), .fd = child->fd};
}

// Leaves the zombie: its pid is not used again before the daemon has written its end down.
void Keeper::note_end(Entry& child) {
  pollfd entry{child.fd, POLLIN, 0};
  if (!child.runs() || poll(&entry, 1, 0) != 1) return;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const os::ProcessEnd end = os::read_process_end(child.fd, child.info.pid);
  child.info.ended_at_ns = static_cast<std::int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
  child.info.code = end.code;
  child.info.flags |= wire::kEnded | (end.known ? wire::kKnown : 0);
  unwatch(child.fd);
}

Reply Keeper::status(Request& request) {
  Entry* child = table_.find(request.message.name, true);
  if (child == nullptr) return refusal(ENOENT, "no process has this key");
  note_end(*child);
  if (request.message.header.type != wire::kAck) return {.body = wire::bytes_of(child->info)};
  if (child->runs()) return refusal(EBUSY, "the process runs");
  if ((child->info.flags & wire::kLeavesOrphans) != 0) note_runtime_gone();
  siginfo_t info{};
  waitid(static_cast<idtype_t>(3 /* P_PIDFD */), static_cast<id_t>(child->fd), &info,
         WEXITED | WNOHANG);
  let_go(*child);
  return {};
}

}  // namespace kuasar::keeper
