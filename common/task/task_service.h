#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "async/task_group.h"
#include "base/error.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/fd_holder.h"
#include "task/container.h"
#include "task/driver.h"
#include "task/events.h"
#include "task/pods.h"
#include "ttrpc/server.h"

namespace containerd::task::v3 {
class CheckpointTaskRequest;
class CloseIORequest;
class ConnectRequest;
class ConnectResponse;
class CreateTaskRequest;
class CreateTaskResponse;
class DeleteRequest;
class DeleteResponse;
class ExecProcessRequest;
class KillRequest;
class PauseRequest;
class PidsRequest;
class PidsResponse;
class ResizePtyRequest;
class ResumeRequest;
class ShutdownRequest;
class StartRequest;
class StartResponse;
class StateRequest;
class StateResponse;
class StatsRequest;
class StatsResponse;
class UpdateTaskRequest;
class WaitRequest;
class WaitResponse;
}  // namespace containerd::task::v3
namespace google::protobuf {
class Empty;
class MessageLite;
}  // namespace google::protobuf

namespace kuasar::task {

namespace api = ::containerd::task::v3;

/// containerd's connections that an earlier daemon served, by Peer::id(); nullptr: containerd has
/// closed it meanwhile.
using HeldConnections = std::map<std::uint64_t, std::shared_ptr<ttrpc::Peer>>;

/// The one implementation of containerd's Task API (containerd.task.v3.Task), for all pods of a
/// daemon. It keeps the states, the exit codes and the standard streams of containers; what a
/// container is, the driver below knows, and what a pod gives to it, Pods above. Lives on the io
/// thread. stop() must have ended before it is destroyed.
class TaskService {
 public:
  /// How long a container whose connection was lost waits for a containerd that was killed with us.
  /// Well below the 5 s within which what was given up is gone (docs/RELIABILITY.md).
  static constexpr std::chrono::seconds kLossPatience{2};

  /// `console_dir` is an existing directory with a short path, for console sockets.
  TaskService(asio::any_io_executor executor, BlockingPool& pool, ContainerDriver& driver,
              Pods& pods, EventSink& events, os::FdHolder& holder, std::string console_dir);

  /// Names the 17 methods to the server.
  void serve_on(ttrpc::Server& server);

  Task<Result<api::CreateTaskResponse>> create(api::CreateTaskRequest request,
                                               ttrpc::CallContext context);
  Task<Result<api::StartResponse>> start(api::StartRequest request, ttrpc::CallContext context);
  Task<Result<api::StateResponse>> state(api::StateRequest request, ttrpc::CallContext context);
  Result<ttrpc::Awaited<api::WaitResponse>> wait(api::WaitRequest request,
                                                 ttrpc::CallContext context);
  /// wait() for a caller that is not containerd: its connection does not count as containerd's, and
  /// it reads the output of the process now, if at all (T22).
  Task<Result<api::WaitResponse>> await_exit(std::string id, std::string exec_id,
                                             std::shared_ptr<ttrpc::Peer> peer);
  Task<Result<google::protobuf::Empty>> kill(api::KillRequest request, ttrpc::CallContext context);
  Task<Result<api::DeleteResponse>> remove(api::DeleteRequest request, ttrpc::CallContext context);
  Task<Result<api::ConnectResponse>> connect(api::ConnectRequest request,
                                             ttrpc::CallContext context);
  Task<Result<api::PidsResponse>> pids(api::PidsRequest request, ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> exec(api::ExecProcessRequest request,
                                             ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> resize_pty(api::ResizePtyRequest request,
                                                   ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> close_io(api::CloseIORequest request,
                                                 ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> pause(api::PauseRequest request,
                                              ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> resume(api::ResumeRequest request,
                                               ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> update(api::UpdateTaskRequest request,
                                               ttrpc::CallContext context);
  Task<Result<api::StatsResponse>> stats(api::StatsRequest request, ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> checkpoint(api::CheckpointTaskRequest request,
                                                   ttrpc::CallContext context);
  Task<Result<google::protobuf::Empty>> shutdown(api::ShutdownRequest request,
                                                 ttrpc::CallContext context);

  /// Takes over a container of an earlier daemon from its record: what was half made or half
  /// deleted is cleaned up, what runs is watched again.
  Task<> recover(std::string dir, std::shared_ptr<const state::v1::ContainerState> record);

  /// After recovery, with every connection served again that is left: what was undone and is not
  /// asked for anew is closed.
  void connections_are_back(const HeldConnections& held);

  /// What an earlier daemon remembered of the sandbox's deleted processes.
  void recover_tombstones(const std::string& sandbox_id, state::v1::Tombstones stones);

  /// Kills and removes every container of a sandbox (Controller.Stop and Shutdown).
  Task<Result<>> remove_all(std::string sandbox_id);
  /// SIGKILL to every container of a sandbox whose PID namespace has ended.
  Task<> kill_all(std::string sandbox_id);
  std::vector<std::string> containers_of(const std::string& sandbox_id) const;
  /// Every container as its record has it, in order of ids.
  std::vector<state::v1::ContainerState> records() const;
  /// How many containers there are, by state as phase_name() has it, and how many execs.
  std::map<std::string, std::size_t> counts() const;
  std::size_t exec_count() const;
  /// What its start took; nothing for one that an earlier daemon made.
  std::shared_ptr<const Timeline> timeline_of(const std::string& id) const;

  /// Looks for containers that containerd has given up and removes them. Runs until stop().
  //
  /// containerd reconnects a task only when it starts (T21): one without a connection is given up
  /// when its bundle is gone, too, or when we lost the connection (not containerd) and the
  /// containerd that made it lives on. The latter is seen after a failed StartContainer, whose
  /// bundle containerd 2.1 forgets until it is restarted.
  Task<> sweep(std::chrono::nanoseconds loss_patience = kLossPatience);
  /// Ends when no change is under way any more, or after `timeout`. New ones are refused.
  Task<> quiesce(std::chrono::nanoseconds timeout);
  /// Stops watching; containers run on.
  Task<> stop();

 private:
  using ContainerPtr = std::shared_ptr<Container>;
  /// Counts the calls that change something.
  class Busy;
  using ProcessPtr = std::shared_ptr<Process>;
  /// Whom a call is about. For the init both are the same object.
  struct Target {
    ContainerPtr container;
    ProcessPtr process;
  };

  Result<ContainerPtr> find(const std::string& id) const;
  Result<Target> find(const std::string& id, const std::string& exec_id) const;
  StdioPlan stdio_plan(const ContainerPtr& container, const Process& process) const;
  Result<> open_streams(const ContainerPtr& container, Process& process);
  static void close_streams(Process& process);
  /// containerd has its connection for the container open, and reads the container's output.
  static bool connected(const Container& container);
  /// Notes that containerd's connection for the container lives.
  void note_peer(Container& container, const ttrpc::CallContext& context);
  void set_peer(Container& container, const std::shared_ptr<ttrpc::Peer>& peer);
  static void readers_are_there(const Container& container);
  static std::string why_given_up(const Container& container,
                                  std::chrono::nanoseconds loss_patience);
  static Result<> check_wanted(const Container& container, const ttrpc::CallContext& context);
  static ExecPlan exec_plan(const Container& container, const Process& exec);

  static Result<api::WaitResponse> end_of(const Target& target);

  // The container and its init.
  Task<Result<>> make(ContainerPtr container,
                      std::shared_ptr<const api::CreateTaskRequest> request);
  Result<ContainerPtr> find_target(const std::string& sandbox_id, const oci::Spec& spec) const;
  Result<> check_target(const Container& target) const;
  Task<Result<api::StartResponse>> start_init(ContainerPtr container, bool redelivered);
  api::CreateTaskResponse created(const Container& container) const;
  api::StartResponse started(const Container& container, const Process& process) const;
  void watch(const Target& target);
  Task<> end(ContainerPtr container);
  Task<> settle_exit(ContainerPtr container, os::ExitStatus status);
  Task<Result<>> take_away(ContainerPtr container);
  Task<Result<>> end_and_take_away(ContainerPtr container);
  Task<Result<>> take_from_pod(ContainerPtr container);
  Task<> give_up(ContainerPtr container, std::string why);
  Task<> recover_init(ContainerPtr container, bool alive);

  // Its resources.
  Task<Result<>> thaw(ContainerPtr container);
  Task<Result<>> thaw_to_die(ContainerPtr container);
  bool tell_oom(const ContainerPtr& container);
  Task<> tell_oom_of_the_end(ContainerPtr container);
  void watch_oom(const ContainerPtr& container);

  // Its execs.
  Result<> add_exec(const ContainerPtr& container, const api::ExecProcessRequest& request);
  Task<Result<api::StartResponse>> start_exec(Target target, bool redelivered);
  Task<Result<>> run_exec(Target target);
  Task<Result<>> begin_exec(Target target);
  void settle_started(const Target& target);
  void settle_failed_start(const Target& target, const Error& why);
  Task<> end_exec(Target target);
  void settle_exec(const Target& target, os::ExitStatus status);
  Task<Result<api::DeleteResponse>> remove_exec(Target target);
  void bury_exec(const Target& target);
  void reap_ended_execs(const Container& container);
  Task<> await_execs(ContainerPtr container);
  Task<> drop_execs(ContainerPtr container);
  Task<> recover_exec(Target target, std::shared_ptr<const state::v1::ExecState> record);
  Task<> resume_start(Target target);

  void remember(const Container& container, const Process& process);
  Result<api::DeleteResponse> remembered(const std::string& id, const std::string& exec_id) const;
  void bury(const ContainerPtr& container);
  pid_t init_pid(const Container& container) const;
  /// False when the record could not be written.
  bool save(const Container& container);
  void publish(std::string topic, const google::protobuf::MessageLite& event);

  asio::any_io_executor executor_;
  BlockingPool& pool_;
  ContainerDriver& driver_;
  Pods& pods_;
  EventSink& events_;
  os::FdHolder& holder_;
  std::string console_dir_;
  std::map<std::string, ContainerPtr> containers_;
  /// Streams of containers whose creation an earlier daemon did not finish, by container.
  std::map<std::string, std::shared_ptr<Stdio>> undone_;
  /// By sandbox: the last of its processes that were deleted.
  std::map<std::string, state::v1::Tombstones> tombstones_;
  TaskGroup watchers_;
  Event stopping_;
  int busy_ = 0;
  /// Watchers are being cancelled: what they see is no exit.
  bool ended_ = false;
};

}  // namespace kuasar::task
