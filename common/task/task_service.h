#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "async/task_group.h"
#include "base/error.h"
#include "task/container.h"
#include "task/driver.h"
#include "task/events.h"
#include "task/pods.h"
#include "ttrpc/server.h"

namespace containerd::task::v3 {
class ConnectRequest;
class ConnectResponse;
class CreateTaskRequest;
class CreateTaskResponse;
class DeleteRequest;
class DeleteResponse;
class KillRequest;
class PidsRequest;
class PidsResponse;
class ShutdownRequest;
class StartRequest;
class StartResponse;
class StateRequest;
class StateResponse;
class WaitRequest;
class WaitResponse;
}  // namespace containerd::task::v3
namespace google::protobuf {
class Empty;
class MessageLite;
}  // namespace google::protobuf

namespace kuasar::task {

namespace api = ::containerd::task::v3;

/// The one implementation of containerd's Task API (containerd.task.v3.Task), for all pods of a
/// daemon. It keeps the states, the exit codes and the standard streams of containers; what a
/// container is, the driver below knows, and what a pod gives to it, Pods above. Lives on the io
/// thread. stop() must have ended before it is destroyed.
class TaskService {
 public:
  TaskService(asio::any_io_executor executor, BlockingPool& pool, ContainerDriver& driver,
              Pods& pods, EventSink& events);

  /// Names the 17 methods to the server; those of later issues answer UNIMPLEMENTED.
  void serve_on(ttrpc::Server& server);

  Task<Result<api::CreateTaskResponse>> create(api::CreateTaskRequest request,
                                               ttrpc::CallContext context);
  Task<Result<api::StartResponse>> start(api::StartRequest request, ttrpc::CallContext context);
  Task<Result<api::StateResponse>> state(api::StateRequest request, ttrpc::CallContext context);
  Task<Result<api::WaitResponse>> wait(api::WaitRequest request, ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> kill(api::KillRequest request, ttrpc::CallContext context);
  Task<Result<api::DeleteResponse>> remove(api::DeleteRequest request, ttrpc::CallContext context);
  Task<Result<api::ConnectResponse>> connect(api::ConnectRequest request,
                                             ttrpc::CallContext context);
  Task<Result<api::PidsResponse>> pids(api::PidsRequest request, ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> shutdown(api::ShutdownRequest request,
                                                 ttrpc::CallContext context);

  /// Takes over a container of an earlier daemon from its record: what was half made or half
  /// deleted is cleaned up, what runs is watched again.
  Task<> recover(std::string dir, std::shared_ptr<const state::v1::ContainerState> record);

  /// Kills and removes every container of a sandbox (Controller.Stop and Shutdown).
  Task<Result<>> remove_all(std::string sandbox_id);
  /// SIGKILL to every container of a sandbox whose PID namespace has ended.
  Task<> kill_all(std::string sandbox_id);
  std::vector<std::string> containers_of(const std::string& sandbox_id) const;

  /// Looks for containers that containerd has given up (its connection and its bundle are gone)
  /// and removes them. Runs until stop().
  Task<> sweep();
  /// Ends when no change is under way any more, or after `timeout`. New ones are refused.
  Task<> quiesce(std::chrono::nanoseconds timeout);
  /// Stops watching; containers run on.
  Task<> stop();

 private:
  using ContainerPtr = std::shared_ptr<Container>;
  /// Counts the calls that change something.
  class Busy;
  struct Tombstone {
    std::string id;
    std::string sandbox_id;
    pid_t pid;
    int exit_status;
    std::chrono::system_clock::time_point exited_at;
  };

  Result<ContainerPtr> find(const std::string& id, const std::string& exec_id) const;
  Task<Result<>> make(ContainerPtr container,
                      std::shared_ptr<const api::CreateTaskRequest> request);
  Task<> watch(ContainerPtr container);
  Task<> settle_exit(ContainerPtr container, os::ExitStatus status);
  Task<Result<>> take_away(ContainerPtr container);
  Task<Result<>> end_and_take_away(ContainerPtr container);
  Task<> give_up(ContainerPtr container);
  void bury(const ContainerPtr& container);
  void save(const Container& container);
  void publish(std::string topic, const google::protobuf::MessageLite& event);

  asio::any_io_executor executor_;
  BlockingPool& pool_;
  ContainerDriver& driver_;
  Pods& pods_;
  EventSink& events_;
  std::map<std::string, ContainerPtr> containers_;
  std::deque<Tombstone> tombstones_;
  TaskGroup watchers_;
  Event stopping_;
  int busy_ = 0;
  /// Watchers are being cancelled: what they see is no exit.
  bool ended_ = false;
};

}  // namespace kuasar::task
