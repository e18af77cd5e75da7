#pragma once

#include <memory>
#include <string>

#include "async/task.h"
#include "base/call_end.h"
#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar {
class BlockingPool;
}

namespace kuasar::sandbox {

class SandboxManager;

/// Serves containerd.services.sandbox.v1.Controller over gRPC. gRPC never listens: connections
/// are accepted here, the peer's uid is checked (SO_PEERCRED), and the socket is handed over.
/// Every call runs as a coroutine on the io thread; gRPC's own threads only carry bytes.
class ControllerServer {
 public:
  /// `task_address` is what Start and Status answer, e.g. "ttrpc+unix:///run/x/task.sock" (T1).
  ControllerServer(asio::any_io_executor io, SandboxManager& manager, BlockingPool& pool,
                   std::string task_address);
  ~ControllerServer();
  ControllerServer(const ControllerServer&) = delete;
  ControllerServer& operator=(const ControllerServer&) = delete;

  /// Is told of every call. Before serve().
  void observe(CallObserver observer);
  /// Accepts until stop().
  Task<> serve(UniqueFd listener);
  /// To be called after SandboxManager::begin_stop(): waits for the calls that run, stops
  /// accepting, sends the peers away and closes gRPC last of all, so that no call is cut as
  /// CANCELLED (T16).
  Task<> stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kuasar::sandbox
