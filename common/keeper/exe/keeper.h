#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include "keeper/exe/tables.h"
#include "keeper/wire.h"
#include "os/clone_child.h"

namespace kuasar::keeper {

/// One line on stderr; `level` is a syslog priority.
void say(int level, const char* format, ...) __attribute__((format(printf, 2, 3)));
/// Text in one static buffer, until the next call.
const char* words(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::int64_t monotonic_ms();

struct Held {
  Name name;
  int fd;
  /// A listening socket that connections are accepted on.
  bool accepting;
  /// Accepted, but the daemon's socket was full: still to be told.
  bool untold;
};

struct Child {
  Name name;
  /// A pidfd.
  int fd;
  wire::ChildInfo info;
};

/// The other end of a connection; pid and pidfd as of its connect().
struct Peer {
  int fd = -1;
  int pidfd = -1;
  pid_t pid = 0;
};

/// A request and its descriptors; a handler that keeps one takes it out with -1.
struct Request {
  wire::Message message;
  int fds[wire::kMaxFds];
  int fd_count;
};

/// The whole keeper: one thread, one epoll, two tables. It parses nothing that comes from
/// containerd, a container or an image.
class Keeper {
 public:
  explicit Keeper(const char* path) : path_(path) {}
  /// Listens on the path; false after having said why not.
  bool listen();
  /// Takes the place of another keeper (see handover.cc); false with nothing changed.
  bool take_over(int handover, bool returned);
  /// Serves until it is told to end; the exit code.
  int run();

 private:
  static constexpr int kMaxPending = 8;
  static constexpr int kRetryMs = 100;
  enum Source : std::uint32_t { kSignal, kSocket, kPeer, kListener, kChildEnd };

  // keeper.cc: descriptors and connections
  bool start();
  bool watch(Source source, int fd, std::uint32_t events);
  void unwatch(int fd);
  void handle(Source source, int fd);
  void accept_peer();
  void accept_connections(int fd);
  bool tell_accepted(Held& held);
  void pause();
  void retry();
  void read_peer(Peer& peer);
  void disconnect(Peer& peer);
  bool become_daemon(Peer& newcomer);
  bool send(Peer& peer, wire::Header header, const char* name, std::size_t name_size,
            const void* body, std::size_t body_size, int fd, int wait_ms);
  void refuse(Peer& peer, std::uint32_t sequence, int error, const char* text);
  void answer(Peer& peer, std::uint32_t sequence, const char* name = nullptr,
              const void* body = nullptr, std::size_t body_size = 0, int fd = -1);

  // requests.cc
  void serve(Peer& peer, Request& request);
  void hello(Peer& peer, const wire::Message& message);
  const char* hold(Request& request, bool accepting, int& error);
  void let_go(Held* held);
  void list(Peer& peer, std::uint32_t sequence);
  void spawn(Peer& peer, Request& request);
  void adopt(Peer& peer, Request& request);
  void status(Peer& peer, const wire::Message& message, bool acknowledge);
  void reap(Peer& peer, const wire::Message& message);
  void answer_child(Peer& peer, std::uint32_t sequence, const Child& child, bool with_fd);
  void note_end(Child& child);
  void forget(Child* child);
  void quit(Peer& peer, std::uint32_t sequence);

  // handover.cc
  void upgrade(Peer& peer, Request& request);
  const char* try_program(int program, int handover);
  int write_handover(std::uint32_t sequence) const;
  void close_on_exec(bool on) const;

  const char* path_;
  bool done_ = false;
  int exit_code_ = 0;
  int epoll_ = -1;
  int socket_ = -1;
  int signals_ = -1;
  int null_ = -1;
  int self_ = -1;
  rlimit file_limit_{};
  std::uint64_t next_connection_ = 1;
  /// When paused listeners are tried again (CLOCK_MONOTONIC); 0: none is paused.
  std::int64_t retry_at_ = 0;
  Peer daemon_;
  Peer pending_[kMaxPending];
  Names names_;
  Table<Held> held_{names_};
  Table<Child> children_{names_};
};

/// kuasar-keeper --check-handover: marks the handover as understood; the exit code.
int check_handover(int fd);

}  // namespace kuasar::keeper
