#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
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

/// A process that becomes containers when it is asked to (worker/serve.h). It is started when it is
/// needed first and again after its end, holds nothing that anybody would miss, and ends with this
/// daemon as with its parent, the keeper. Lives on the io thread.
class Zygote {
 public:
  /// The process ends, too.
  virtual ~Zygote();
  Zygote(const Zygote&) = delete;
  Zygote& operator=(const Zygote&) = delete;

  /// Makes a child by the request, whose descriptors these are, and returns its pid: a child of the
  /// spawner that has no name yet. kFailedPrecondition when the zygote cannot be had, kUnavailable
  /// when it has died meanwhile: a child that it may have made ends by itself once the other end of
  /// its control socket is closed.
  Task<Result<pid_t>> make_child(Request request, const std::vector<UniqueFd>& fds);
  /// Ends it, also one of an earlier daemon.
  Task<> close();

 protected:
  struct Started {
    os::Process process;
    UniqueFd socket;
  };
  /// `key`: to the spawner.
  Zygote(os::Spawner& spawner, std::string key);
  /// What it leaves behind on a failure has the key, or ends by itself.
  virtual Task<Result<Started>> start() = 0;

  os::Spawner& spawner_;
  const std::string key_;

 private:
  /// Ends it and waits for its end, at most five seconds. Blocking.
  void end();
  bool alive() const;
  Task<Result<>> ensure();
  /// Of this daemon or of an earlier one.
  Task<> clear_away();
  Result<> send(const Request& request, const std::vector<UniqueFd>& fds) const;

  AsyncMutex mutex_;
  std::optional<os::Process> process_;
  UniqueFd socket_;
  std::uint32_t sequence_ = 0;
};

/// The zygote of one engine: it has nothing but the engine in memory.
class EngineZygote : public Zygote {
 public:
  /// `worker`: the kuasar-wasm-worker executable.
  EngineZygote(os::Spawner& spawner, EngineConfig config, std::string worker);

  const EngineConfig& config() const { return config_; }
  /// Of its native code (worker/artifact.h); empty: there is none, or it has not begun yet.
  const std::string& stamp() const { return stamp_; }

 private:
  os::ProcessSpec spec(int socket) const;
  Task<Result<Started>> start() override;

  EngineConfig config_;
  std::string worker_;
  std::string stamp_;
};

/// Receives one datagram; what the other end says of itself, "R" or "E" and words, as a Result; "M"
/// is kAborted. `who` is for messages.
Task<Result<std::string>> await_ready(int socket, std::chrono::nanoseconds timeout,
                                      std::string who);
/// A connected pair of SOCK_SEQPACKET sockets.
struct SocketPair {
  UniqueFd ours;
  UniqueFd theirs;
};
Result<SocketPair> make_socket_pair();
/// A file in memory with these bytes, which can be sealed. `name` is for messages and /proc.
Result<UniqueFd> memory_file(const char* name, std::string_view bytes);
/// One with the plan, for kPlanFd.
Result<UniqueFd> plan_file(const Plan& plan);

}  // namespace kuasar::wasm
