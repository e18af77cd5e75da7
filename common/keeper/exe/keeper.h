#pragma once

#include <sys/epoll.h>
#include <sys/types.h>

#include <string_view>

#include "keeper/exe/table.h"
#include "keeper/packet.h"
#include "keeper/wire.h"

namespace kuasar::keeper {

/// One line on stderr.
void say(const char* text);
/// Text in one static buffer, until the next call.
const char* words(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// The other end of a connection; pid and pidfd as of its connect().
struct Peer {
  int fd = -1;
  int pidfd = -1;
  pid_t pid = 0;
};

/// A handler that keeps a descriptor takes it out of the packet.
struct Request {
  Peer* from;
  Packet packet;
  wire::Message message;
};

struct Reply {
  int error = 0;
  std::string_view name = {};
  std::string_view body = {};
  int fd = -1;
};
inline Reply refusal(int error, const char* text) {
  return {.error = error, .body = text};
}

/// What one keeper leaves to the next, beside the table.
struct State {
  /// Changes with State, with Entry, and with how keepers execute each other.
  static constexpr std::uint64_t kFormat = 0x5245564f444e4802;

  std::uint64_t format = kFormat;
  /// Of the UPGRADE that the next keeper answers.
  std::uint32_t sequence = 0;
  std::uint64_t next_connection = 1;
  Peer daemon;
  int socket = -1;
  /// The program to go back to.
  int old = -1;
};

/// The whole keeper: one thread, one epoll, one table. It parses nothing that comes from
/// containerd, a container or an image. What returns an int to main() returns an exit code.
class Keeper {
 public:
  explicit Keeper(const char* path) : path_(path) {}
  /// Listens on the path; false after having said why not.
  bool listen();
  /// Serves until a signal kills it.
  int run();
  /// Takes the place of the keeper that executed this program, whose handover is stdin; if it
  /// cannot, it goes back to that one, which has `returned` then.
  int take_over(bool returned);
  /// Marks the handover as understood.
  int check_handover();

 private:
  void watch(int fd);
  // Before every close(): epoll(7) goes on to report what has a duplicate elsewhere.
  void unwatch(int fd) { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr); }
  void watch_all();
  void handle(int fd);
  int accept_one(int listener, bool room);
  void accept_peer();
  void accept_connection(const Entry& listener);
  void read_peer(Peer& peer);
  void disconnect(Peer& peer);
  void send(Peer& peer, std::uint16_t type, std::uint32_t sequence, const Reply& reply);
  void tell(const Entry& entry);

  Reply serve(Request& request);
  Reply hello(Request& request);
  Reply hold(Request& request);
  Reply drop(Request& request);
  Reply list(Request& request);
  Reply spawn(Request& request);
  Reply status(Request& request);
  void note_end(Entry& child);
  void let_go(Entry& entry);

  // strays.cc
  int reap_strays();
  bool keep_or_reap(pid_t pid, bool keep);
  void note_runtime_gone();

  // handover.cc
  Reply upgrade(Request& request);
  const char* try_program(int program) const;
  bool write_handover() const;
  bool read_handover();
  bool close_on_exec(bool on) const;
  void execute(int program, const char* option) const;

  const char* path_;
  int epoll_ = -1;
  int null_ = -1;
  /// Readable when a child has ended.
  int signals_ = -1;
  /// A descriptor that should be watched is not.
  bool retry_ = false;
  /// A child has ended that may be one, or one is held; CLOCK_MONOTONIC.
  bool strays_due_ = true;
  std::int64_t strays_next_ms_ = 0;
  std::int64_t runtime_gone_ms_ = 0;
  State state_;
  Peer pending_[8];
  unsigned peers_ = 0;
  Table table_;
};

}  // namespace kuasar::keeper
