#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "async/task.h"
#include "keeper/keeper_call.h"
#include "os/fd_holder.h"
#include "os/spawner.h"

namespace kuasar::keeper {

/// The daemon's side of its keeper. Every call is a request and its answer on the io thread, some
/// 50 us. It keeps a duplicate of all that the keeper holds: a call that finds the keeper dead (or
/// silent for five seconds, then it is killed) waits for the next one, hands everything over and is
/// repeated once. What a keeper had accepted but not yet told is lost with it.
class KeeperClient : public os::FdHolder {
 public:
  struct Options {
    /// Path of the keeper's socket.
    std::string socket;
    /// The kuasar-keeper to start when none listens; empty: somebody else starts it (systemd), we
    /// wait for up to five seconds.
    std::string program;
  };
  /// A named process as the keeper told last.
  struct Child {
    pid_t pid = -1;
    UniqueFd pidfd;
    wire::Info info{};
    /// It was there before this daemon, and nobody has asked for it yet.
    bool unclaimed = false;
  };
  /// The name of a new connection, and a duplicate of it.
  using Accepted = std::function<void(std::string name, UniqueFd fd)>;

  /// Connects, ends an earlier daemon that is still served, and takes over what the keeper holds.
  /// kFailedPrecondition when the keeper is of another mount namespace.
  static Result<std::unique_ptr<KeeperClient>> connect(asio::any_io_executor executor,
                                                       Options options);
  ~KeeperClient() override;

  Result<> hold(const std::string& name, int fd) override;
  void drop(const std::string& name) override;
  Result<UniqueFd> get(const std::string& name) override;

  /// The keeper accepts on the socket (which becomes non-blocking) and holds every connection as
  /// `<kind>/<n>`, the socket as `listen/<kind>`; also while no daemon runs.
  Result<> accept(const std::string& kind, int listening_fd);
  /// Names of what is held that start with `prefix`.
  std::vector<std::string> held(std::string_view prefix) const;
  /// Called on the io thread for every connection that is accepted from now on; the earlier ones
  /// are found with held().
  void on_accept(Accepted accepted);
  /// Watches for connections and for the keeper's death; ends when cancelled.
  Task<> run();

  /// Has the keeper become `program` in place, whatever its version; kFailedPrecondition in words
  /// when it stays as it is.
  Result<> upgrade(const std::string& program);
  /// The same when its version is not ours.
  Result<> upgrade_if_other(const std::string& program);
  /// Ends the keeper with SIGTERM; kUnavailable in words while processes are named.
  Result<> quit();

  /// For KeeperSpawner; see os::Spawner.
  Result<os::Process> spawn(const std::string& key, const os::ProcessSpec& spec);
  Result<os::Process> find(const std::string& key);
  Result<os::Process> adopt(const std::string& key, pid_t pid);
  Result<os::ExitStatus> status(const std::string& key);
  void acknowledge(const std::string& key, pid_t pid);
  /// A zombie of the keeper that no key names.
  Result<> reap(pid_t pid);
  const std::map<std::string, Child>& children() const { return children_; }

  pid_t keeper_pid() const { return keeper_pid_; }
  const std::string& keeper_version() const { return version_; }
  std::size_t held_count() const { return held_.size(); }
  /// Keepers that died and were replaced, by us or by systemd.
  std::uint64_t replacements() const { return replacements_; }

 private:
  struct Held {
    UniqueFd fd;
    bool accepting = false;
  };

  KeeperClient(asio::any_io_executor executor, Options options);

  Result<Incoming> call(wire::Type type, std::string_view name, std::string_view body = {},
                        std::span<const int> fds = {},
                        std::chrono::milliseconds timeout = std::chrono::seconds(5));
  std::optional<Incoming> try_call(wire::Type type, std::string_view name, std::string_view body,
                                   std::span<const int> fds, std::chrono::milliseconds timeout);
  Result<> reach();
  Result<> start_program();
  Result<> greet();
  Result<> restore();
  bool hand_back();
  std::optional<pid_t> spawned_unanswered(const std::string& key, unsigned long long since) const;

  void absorb(Incoming message);
  void take_child(const std::string& key, Incoming& message, UniqueFd pidfd);
  void deliver_later();
  void deliver();
  void drain();

  asio::any_io_executor executor_;
  Options options_;
  std::optional<Connection> connection_;
  /// Counts connections: run() sees that it watches an old one.
  unsigned generation_ = 0;
  std::uint64_t replacements_ = 0;
  std::uint32_t sequence_ = 0;
  std::uint64_t next_connection_ = 1;
  pid_t keeper_pid_ = -1;
  std::string version_;
  std::uint16_t protocol_ = 0;
  std::map<std::string, Held> held_;
  std::map<std::string, Child> children_;
  std::deque<std::string> arrivals_;
  Accepted accepted_;
  /// Gone with the client: a delivery that was posted before does nothing then.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kuasar::keeper
