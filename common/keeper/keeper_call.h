#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "keeper/wire.h"

namespace kuasar::keeper {

/// A message from the keeper.
struct Incoming {
  wire::Header header{};
  std::string name;
  std::string body;
  std::vector<UniqueFd> fds;

  /// False when the body has another size.
  template <typename T>
  bool read(T& out) const {
    return wire::read_body({header, name, body}, out);
  }
};

/// One connection to one living keeper. Everything blocks, for at most the time that is given.
class Connection {
 public:
  enum class Read { kMessage, kNothing, kDead };

  static Result<Connection> open(const std::string& path);

  /// The pid that the keeper's HELLO answer gave (SO_PEERCRED names who called listen(2), which a
  /// keeper that went to the background since is not). Before it end() does nothing.
  bool identify(pid_t pid);

  /// False when the keeper is gone.
  bool send(wire::Type type, std::uint32_t sequence, std::string_view name, std::string_view body,
            std::span<const int> fds) const;
  Read receive(Incoming& message, std::chrono::milliseconds timeout) const;
  /// Sends SIGTERM or SIGKILL and waits, reaping our child; false when the keeper is not dead after
  /// five seconds.
  bool end(int signal) const;
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  UniqueFd pidfd_;
};

/// The body of kSpawn: `program` is a path. kInvalidArgument when it does not fit a message.
struct SpawnArguments {
  wire::Spawn fixed{};
  std::string program;
  std::string cwd;
  std::vector<std::string> argv;
  std::vector<std::string> env;
};
Result<std::string> encode_spawn(SpawnArguments arguments);

}  // namespace kuasar::keeper
