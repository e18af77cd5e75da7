#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "async/task_group.h"
#include "base/error.h"
#include "sandbox/state_paths.h"
#include "task/task_service.h"
#include "ttrpc/call.h"

namespace kuasar::ctl::v1 {
class CloseExecInputRequest;
class CloseExecInputResponse;
class ResizeExecRequest;
class ResizeExecResponse;
class StartExecRequest;
class StartExecResponse;
class WaitExecRequest;
class WaitExecResponse;
}  // namespace kuasar::ctl::v1

namespace kuasar::daemon {

/// Processes that kuasar-ctl runs in containers. Each is an exec of TaskService, as containerd's
/// are, whose life is tied to its caller's connection and to this daemon: when either ends, it is
/// killed and deleted. Part of CtlService; lives on the io thread. stop() must have ended before it
/// is destroyed.
class CtlExecs {
 public:
  CtlExecs(asio::any_io_executor executor, BlockingPool& pool, const sandbox::StatePaths& paths,
           task::TaskService& tasks);

  /// Ends what an earlier daemon left (it was killed), in the background, and makes the directory
  /// of the FIFOs anew.
  Result<> begin();
  /// Kills what runs; ends when everything is deleted, or soon after `grace`.
  Task<> stop(std::chrono::nanoseconds grace);

  Task<Result<ctl::v1::StartExecResponse>> start(ctl::v1::StartExecRequest request,
                                                 ttrpc::CallContext context);
  Task<Result<ctl::v1::WaitExecResponse>> wait(ctl::v1::WaitExecRequest request,
                                               ttrpc::CallContext context);
  Task<Result<ctl::v1::ResizeExecResponse>> resize(ctl::v1::ResizeExecRequest request,
                                                   ttrpc::CallContext context);
  Task<Result<ctl::v1::CloseExecInputResponse>> close_input(ctl::v1::CloseExecInputRequest request,
                                                            ttrpc::CallContext context);

 private:
  Task<Result<std::string>> process_of(std::shared_ptr<const ctl::v1::StartExecRequest> request);
  Task<> tend(std::string container, std::string exec, std::shared_ptr<ttrpc::Peer> peer);
  Task<> end(std::string container, std::string exec);

  BlockingPool& pool_;
  const sandbox::StatePaths& paths_;
  task::TaskService& tasks_;
  TaskGroup group_;
  Event stopping_;
  /// Of nobody, for waits that no caller cuts.
  std::shared_ptr<ttrpc::Peer> nobody_ = std::make_shared<ttrpc::Peer>(0);
};

}  // namespace kuasar::daemon
