#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "async/task_group.h"
#include "base/error.h"
#include "daemon/ctl_exec.h"
#include "daemon/listener.h"
#include "sandbox/sandbox_manager.h"
#include "sandbox/state_store.h"
#include "task/task_service.h"
#include "ttrpc/server.h"

namespace kuasar::ctl::v1 {
class HealthRequest;
class HealthResponse;
class InspectRequest;
class InspectResponse;
class ListRequest;
class ListResponse;
}  // namespace kuasar::ctl::v1

namespace kuasar::daemon {

/// What kuasar-ctl talks to: <dir>/ctl.sock, for root alone. The socket is this daemon's own: a
/// client that is connected when the daemon ends has to begin anew. Owned by the daemon's Service;
/// lives on the io thread. stop() must have ended before it is destroyed.
class CtlService {
 public:
  struct Parts {
    BlockingPool& pool;
    sandbox::StateStore& store;
    sandbox::SandboxManager& pods;
    task::TaskService& tasks;
    /// Adds what only the daemon as a whole knows: its name, its keeper, its events.
    std::function<void(ctl::v1::HealthResponse&)> describe;
  };

  CtlService(asio::any_io_executor executor, Parts parts);

  /// Listens and serves. After the recovery of the containers.
  Result<> begin();
  /// Removes the socket, ends what runs for clients.
  Task<> stop();

  Task<Result<ctl::v1::ListResponse>> list(ctl::v1::ListRequest request,
                                           ttrpc::CallContext context);
  Task<Result<ctl::v1::InspectResponse>> inspect(ctl::v1::InspectRequest request,
                                                 ttrpc::CallContext context);
  Task<Result<ctl::v1::HealthResponse>> health(ctl::v1::HealthRequest request,
                                               ttrpc::CallContext context);

 private:
  Task<> tell_slow_work();
  Task<ctl::v1::ListResponse> pods(std::optional<std::string> only, bool timing);

  Parts parts_;
  CtlExecs execs_;
  ttrpc::Server server_;
  std::optional<Listener> listener_;
  Event stopping_;
  TaskGroup group_;
};

}  // namespace kuasar::daemon
