#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "async/gate.h"
#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "os/spawner.h"
#include "worker/plan.h"

namespace kuasar::wasm {

/// How an engine's worker is started.
struct EngineConfig {
  std::string name;
  /// For dlopen(3).
  std::string library;
  /// A dynamic loader of its own with a directory of libraries, for an engine that needs a newer C
  /// library than this machine's; empty: the machine's.
  std::string loader;
  std::string library_path;
  /// Its containers use native code from a cache.
  bool aot = false;
};

/// The zygote of one engine: a process that has the engine in memory and becomes containers
/// (worker/main.cc). It is started when the first container needs it and again after its end, holds
/// nothing that anybody would miss, and ends with this daemon as with its parent, the keeper. Owned
/// by WasmDriver, lives on the io thread.
class Zygote {
 public:
  /// `worker`: the kuasar-wasm-worker executable.
  Zygote(os::Spawner& spawner, EngineConfig config, std::string worker);
  /// The zygote ends, too.
  ~Zygote();
  Zygote(const Zygote&) = delete;
  Zygote& operator=(const Zygote&) = delete;

  /// Makes a child by the request, whose descriptors these are, and returns its pid: a child of the
  /// spawner that has no name yet. kFailedPrecondition when the engine cannot be loaded,
  /// kUnavailable when the zygote has died meanwhile: a child that it may have made ends by itself
  /// once the other end of its control socket is closed.
  Task<Result<pid_t>> make_child(Request request, const std::vector<UniqueFd>& fds);
  const EngineConfig& config() const { return config_; }
  /// Of its native code (worker/artifact.h); empty: there is none, or it has not begun yet.
  const std::string& stamp() const { return stamp_; }

 private:
  /// Ends it and waits for its end, at most five seconds. Blocking.
  void end();
  std::string key() const { return "zygote/" + config_.name; }
  bool alive() const;
  os::ProcessSpec spec(int socket) const;
  Task<Result<>> ensure();
  Task<Result<>> start();
  Task<Result<>> await_engine();
  /// Of this daemon or of an earlier one.
  Task<> clear_away();
  Result<> send(const Request& request, const std::vector<UniqueFd>& fds) const;

  os::Spawner& spawner_;
  EngineConfig config_;
  std::string worker_;
  AsyncMutex mutex_;
  std::optional<os::Process> process_;
  UniqueFd socket_;
  std::uint32_t sequence_ = 0;
  std::string stamp_;
};

/// Receives one datagram; what the other end says of itself, "R" or "E" and words, as a Result.
/// `who` is for messages.
Task<Result<std::string>> await_ready(int socket, std::chrono::nanoseconds timeout,
                                      std::string who);
/// A connected pair of SOCK_SEQPACKET sockets.
struct SocketPair {
  UniqueFd ours;
  UniqueFd theirs;
};
Result<SocketPair> make_socket_pair();
/// A file in memory with the plan, for kPlanFd.
Result<UniqueFd> plan_file(const Plan& plan);

}  // namespace kuasar::wasm
