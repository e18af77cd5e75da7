#include "task/convert.h"

#include "task/any.h"

namespace kuasar::task {
namespace {

using std::chrono::duration_cast;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using std::chrono::system_clock;
using Record = state::v1::ContainerState;
using ExecRecord = state::v1::ExecState;

Record::Phase to_record_phase(Phase phase) {
  switch (phase) {
    case Phase::kCreating: return Record::CREATING;
    case Phase::kCreated:
    case Phase::kStarting: return Record::CREATED;
    case Phase::kRunning:
    case Phase::kPaused: return Record::RUNNING;
    case Phase::kStopped: return Record::STOPPED;
    case Phase::kDeleting: return Record::DELETING;
  }
  return Record::PHASE_UNSPECIFIED;
}

// A record without a phase is one that was never finished.
Phase from_record_phase(Record::Phase phase) {
  switch (phase) {
    case Record::CREATED: return Phase::kCreated;
    case Record::RUNNING: return Phase::kRunning;
    case Record::STOPPED: return Phase::kStopped;
    case Record::DELETING: return Phase::kDeleting;
    default: return Phase::kCreating;
  }
}

ExecRecord::Phase to_exec_phase(Phase phase) {
  switch (phase) {
    case Phase::kStarting: return ExecRecord::STARTING;
    case Phase::kRunning: return ExecRecord::RUNNING;
    case Phase::kStopped:
    case Phase::kDeleting: return ExecRecord::STOPPED;
    default: return ExecRecord::CREATED;
  }
}

Phase from_exec_phase(ExecRecord::Phase phase) {
  switch (phase) {
    case ExecRecord::STARTING: return Phase::kStarting;
    case ExecRecord::RUNNING: return Phase::kRunning;
    case ExecRecord::STOPPED: return Phase::kStopped;
    default: return Phase::kCreated;
  }
}

state::v1::Connection to_record(const ttrpc::Peer& peer) {
  state::v1::Connection record;
  record.set_id(peer.id());
  if (peer.process().pid != 0) {
    record.mutable_peer()->set_pid(peer.process().pid);
    record.mutable_peer()->set_start_time(peer.process().start_time);
  }
  return record;
}

// Closed as far as anybody knows.
std::shared_ptr<ttrpc::Peer> from_record(const state::v1::Connection& record) {
  const ttrpc::PeerProcess process{record.peer().pid(), record.peer().start_time()};
  auto peer = std::make_shared<ttrpc::Peer>(record.id(), process);
  peer->closed_event().set();
  return peer;
}

bool has_ended(const Process& process) {
  return process.phase == Phase::kStopped || process.phase == Phase::kDeleting;
}

ExecRecord to_record(const Process& exec) {
  ExecRecord record;
  record.set_id(exec.exec);
  record.set_phase(to_exec_phase(exec.phase));
  record.set_stdin(exec.paths.stdin_path);
  record.set_stdout(exec.paths.stdout_path);
  record.set_stderr(exec.paths.stderr_path);
  record.set_terminal(exec.terminal);
  record.set_start_error(exec.start_error);
  record.set_stdin_closed(exec.stdin_closed);
  if (exec.window) {
    record.set_width(exec.window->first);
    record.set_height(exec.window->second);
  }
  if (has_ended(exec)) {
    record.set_exit_status(static_cast<std::uint32_t>(exec.exit_status));
    *record.mutable_exited_at() = to_timestamp(exec.exited_at);
  }
  return record;
}

std::shared_ptr<Process> from_record(const ExecRecord& record) {
  auto exec = std::make_shared<Process>();
  exec->exec = record.id();
  exec->phase = from_exec_phase(record.phase());
  exec->paths = {record.stdin(), record.stdout(), record.stderr()};
  exec->terminal = record.terminal();
  exec->start_error = record.start_error();
  exec->stdin_closed = record.stdin_closed();
  if (record.width() != 0 || record.height() != 0) {
    exec->window = std::pair(static_cast<std::uint16_t>(record.width()),
                             static_cast<std::uint16_t>(record.height()));
  }
  exec->exit_status = static_cast<int>(record.exit_status());
  exec->exited_at = from_timestamp(record.exited_at());
  return exec;
}

}  // namespace

google::protobuf::Timestamp to_timestamp(system_clock::time_point time) {
  const nanoseconds since = time.time_since_epoch();
  const seconds whole = std::chrono::floor<seconds>(since);
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(whole.count());
  stamp.set_nanos(static_cast<std::int32_t>((since - whole).count()));
  return stamp;
}

system_clock::time_point from_timestamp(const google::protobuf::Timestamp& time) {
  return system_clock::time_point(
      duration_cast<system_clock::duration>(seconds(time.seconds()) + nanoseconds(time.nanos())));
}

std::string_view phase_name(Phase phase) {
  switch (phase) {
    case Phase::kCreating: return "being created";
    case Phase::kCreated: return "created";
    case Phase::kStarting: return "being started";
    case Phase::kRunning: return "running";
    case Phase::kPaused: return "paused";
    case Phase::kStopped: return "stopped";
    case Phase::kDeleting: return "being deleted";
  }
  return "unknown";
}

::containerd::v1::types::Status to_status(Phase phase) {
  switch (phase) {
    case Phase::kCreating:
    case Phase::kCreated:
    case Phase::kStarting: return ::containerd::v1::types::CREATED;
    case Phase::kRunning: return ::containerd::v1::types::RUNNING;
    case Phase::kPaused: return ::containerd::v1::types::PAUSED;
    case Phase::kStopped:
    case Phase::kDeleting: return ::containerd::v1::types::STOPPED;
  }
  return ::containerd::v1::types::UNKNOWN;
}

Record to_record(const Container& container) {
  Record record;
  record.set_id(container.id);
  record.set_sandbox_id(container.sandbox_id);
  record.set_phase(to_record_phase(container.phase));
  record.set_bundle(container.bundle);
  record.set_stdin(container.paths.stdin_path);
  record.set_stdout(container.paths.stdout_path);
  record.set_stderr(container.paths.stderr_path);
  record.set_shared_pid_namespace(container.shared_pid_namespace);
  record.set_terminal(container.terminal);
  record.set_io_uid(container.io_uid);
  record.set_io_gid(container.io_gid);
  record.set_mount_label(container.mount_label);
  record.set_oom_kills(container.oom_kills);
  record.set_runtime(container.runtime);
  if (container.peer) *record.mutable_connection() = to_record(*container.peer);
  for (const auto& [id, exec] : container.execs) *record.add_execs() = to_record(*exec);
  if (has_ended(container)) {
    record.set_exit_status(static_cast<std::uint32_t>(container.exit_status));
    *record.mutable_exited_at() = to_timestamp(container.exited_at);
  }
  return record;
}

void from_record(const Record& record, Container& container) {
  container.id = record.id();
  container.sandbox_id = record.sandbox_id();
  container.phase = from_record_phase(record.phase());
  container.bundle = record.bundle();
  container.paths = {record.stdin(), record.stdout(), record.stderr()};
  container.shared_pid_namespace = record.shared_pid_namespace();
  container.terminal = record.terminal();
  container.io_uid = record.io_uid();
  container.io_gid = record.io_gid();
  container.mount_label = record.mount_label();
  container.oom_kills = record.oom_kills();
  container.runtime = record.runtime();
  if (record.has_connection()) container.peer = from_record(record.connection());
  for (const ExecRecord& exec : record.execs()) container.execs[exec.id()] = from_record(exec);
  container.exit_status = static_cast<int>(record.exit_status());
  container.exited_at = from_timestamp(record.exited_at());
}

bool unpack_any(const google::protobuf::Any& any, google::protobuf::Message& message) {
  return any_is(any, message.GetDescriptor()->full_name()) && message.ParseFromString(any.value());
}

}  // namespace kuasar::task
